"""The cards of a power log: identification by columns, selection by the user, separation of unnamed cards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from torchwatt.core.errors import ConfigError, SensorError
from torchwatt.core.meter import FloatArray, IntArray, Meter, Recording
from torchwatt.core.terms import Domain
from torchwatt.core.units import NS_PER_S

# Names of columns, in order of preference.
CARD_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "index": ("index", "gpu", "gpu_index", "gpu_id", "device", "device_id", "deviceid", "idx", "gpu_idx", "card"),
    "uuid": ("uuid", "gpu_uuid", "device_uuid", "unique_id", "gpu_unique_id"),
    "bus_id": ("pci.bus_id", "gpu_bus_id", "pci_bus_id", "bus_id", "pci_bus", "bdf"),
    "serial": ("serial", "gpu_serial", "serial_number"),
    "host": ("hostname", "host", "node", "nodename", "node_name", "machine", "instance"),
    "name": ("name", "gpu_name", "modelname", "model_name", "product_name", "gpu_model", "model", "card_series"),
}
_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-zA-Z-]+")
_BUS = re.compile(r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]", re.IGNORECASE)
_INDEX = re.compile(r"(?:card|gpu|nvidia|cuda|device)?[ :_#\[]*(\d{1,5})\]?", re.IGNORECASE)
_MISSING = frozenset(
    {"", "-", "n/a", "[n/a]", "[not supported]", "[unknown error]", "err!", "none", "null", "nan", "0x0"}
)
_TICK_NS = 20_000_000  # nvidia-smi reads the cards in sequence, some milliseconds each
_MAX_CARDS = 64
_BACK_NS = 5 * NS_PER_S  # a step back in time larger than scheduling delays
_EXACT_SHARE = 0.9  # least share of ticks with one line per card


@dataclass(frozen=True, slots=True)
class LogCard:
    """Identification of a reading's card in a log, as text; fields that the log lacks are empty."""

    index: str = ""
    uuid: str = ""
    bus_id: str = ""
    serial: str = ""
    host: str = ""
    name: str = ""

    @property
    def named(self) -> bool:
        """Return whether the fields identify a single card; a name or a host may be shared by several."""
        return bool(self.index or self.uuid or self.bus_id or self.serial)

    @property
    def text(self) -> str:
        """Return the non-empty fields as one line, for messages."""
        parts = (self.host, self.index and f"index {self.index}", self.uuid, self.bus_id, self.serial, self.name)
        return " ".join(part for part in parts if part) or "not named"

    @classmethod
    def of(cls, meter: Meter) -> LogCard:
        """Return the card of a meter, from its facts."""
        return cls(**{field.name: meter.fact(field.name) or "" for field in fields(cls)})


@lru_cache(maxsize=1 << 12)
def parse_card(cells: tuple[tuple[str, str], ...]) -> LogCard:
    """Make a card of (kind, cell) pairs; a uuid is recognised in any column, a bus id also in an index column."""
    parts: dict[str, str] = {}
    for kind, cell in cells:
        value = cell.strip().strip('"')
        if value.lower() in _MISSING:
            continue
        if _UUID.fullmatch(value):
            parts["uuid"] = value
        elif kind in {"index", "bus_id"} and _BUS.fullmatch(value):
            parts["bus_id"] = normalise_bus_id(value)
        elif kind == "index":
            number = _INDEX.fullmatch(value)
            parts.setdefault("index" if number else "name", str(int(number.group(1))) if number else value)
        else:
            parts.setdefault(kind, value)
    return LogCard(**parts)


def normalise_bus_id(bus_id: str) -> str:
    """Normalise a bus id: `00000000:3B:00.0` and `0000:3b:00.0` become `3b:00.0`; a domain other than 0 is kept."""
    domain, _, bus = bus_id.lower().rpartition(":")[0].rpartition(":")
    short = f"{bus}:{bus_id.lower().rpartition(':')[2]}"
    return f"{int(domain, 16):04x}:{short}" if domain and int(domain, 16) else short


def select_card(meters: Sequence[Meter], selector: str) -> Meter:
    """Select a card by index, uuid or its prefix (5 characters or more), bus id, serial number, host or name.

    Raises:
        ConfigError: No card or more than one matches; the message lists them.
    """
    matches = [meter for meter in meters if _matches(LogCard.of(meter), selector.strip())]
    if len(matches) == 1:
        return matches[0]
    names = "; ".join(LogCard.of(meter).text for meter in matches or meters)
    raise ConfigError(
        f"--device {selector} is {'none' if not matches else 'more than one'} of the log's cards: {names}"
    )


def _matches(candidate: LogCard, selector: str) -> bool:
    low = selector.lower()
    host, _, inner = selector.rpartition("/")
    if host and candidate.host == host:
        return _matches(
            LogCard(candidate.index, candidate.uuid, candidate.bus_id, candidate.serial, "", candidate.name), inner
        )
    if candidate.uuid and len(low) >= 5 and candidate.uuid.lower().startswith(low):
        return True
    if _BUS.fullmatch(selector):
        return candidate.bus_id == normalise_bus_id(selector)
    number = _INDEX.fullmatch(selector)
    if number is not None and candidate.index == str(int(number.group(1))):
        return True
    return low in {part.lower() for part in (candidate.uuid, candidate.serial, candidate.host, candidate.name) if part}


def count_lines_per_tick(t_ns: IntArray, power_w: FloatArray) -> int:
    """Return the number of cards in a log that does not name them, from lines that follow each other within 20 ms.

    Args:
        t_ns: Times in the order of the file.
        power_w: The readings.

    Returns:
        1 if each line is a separate tick. Lines with times in whole seconds may also be several readings of one card:
        this is decided by the powers, which for several cards repeat in card order.
    """
    apart_ns = np.abs(np.diff(t_ns))
    if len(apart_ns) < 3:
        return 1
    for share in (1.0, 0.97, 0.9, 0.75, 0.5):
        tick_ns = float(np.quantile(apart_ns, share))
        if not tick_ns > 0:
            break
        limit_ns = min(tick_ns / 10, _TICK_NS)
        ends = np.flatnonzero(apart_ns > limit_ns) + 1
        sizes = np.diff(np.concatenate(([0], ends, [len(t_ns)])))
        usual = int(np.median(sizes))
        if len(sizes) >= 2 and 2 <= usual <= _MAX_CARDS and float((sizes == usual).mean()) >= _EXACT_SHARE:
            return usual if _several_cards(t_ns, power_w, sizes, usual) else 1
    return 1


def _several_cards(t_ns: IntArray, power_w: FloatArray, sizes: IntArray, usual: int) -> bool:
    """Return whether the lines of a tick are of several cards; for whole-second times, decided by the powers."""
    if np.any(t_ns % NS_PER_S):
        return True
    if len(sizes) < 3:
        return False
    firsts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    ticks = power_w[np.add.outer(firsts[sizes == usual], np.arange(usual))]
    within, between = np.abs(np.diff(ticks, axis=1)).mean(), np.abs(np.diff(ticks, axis=0)).mean()
    return bool(within > 3 * between + 0.5)


def positions_in_tick(t_ns: IntArray, count: int) -> IntArray:
    """Return each line's position within its tick of `count` lines; -1 in ticks with more or fewer lines."""
    apart_ns = np.abs(np.diff(t_ns))
    limit_ns = min(float(apart_ns.max()) / 10, _TICK_NS)
    ends = [0, *(np.flatnonzero(apart_ns > limit_ns) + 1).tolist(), len(t_ns)]
    positions = np.full(len(t_ns), -1, dtype=np.int64)
    for lo, hi in pairwise(ends):
        if hi - lo == count:
            positions[lo:hi] = np.arange(count)
    return positions


def check_single_series(log_name: str, key: LogCard, t_ns: IntArray, power_w: FloatArray) -> None:
    """Reject overlapping series of readings of one card, as in concatenated logs of several machines.

    Args:
        log_name: Name of the log, for the message.
        key: The card.
        t_ns: Times of its readings in the order of the file.
        power_w: The readings.

    Raises:
        SensorError: Two series overlap by at least half of the shorter one, and their readings differ.
    """
    restarts = np.flatnonzero(np.diff(t_ns) < -_BACK_NS) + 1
    parts = np.split(np.arange(len(t_ns)), restarts)
    for earlier, later in pairwise(parts):
        lo, hi = max(t_ns[earlier].min(), t_ns[later].min()), min(t_ns[earlier].max(), t_ns[later].max())
        shorter = min(np.ptp(t_ns[earlier]), np.ptp(t_ns[later]))
        if shorter <= 0 or hi - lo < shorter / 2:
            continue
        readings = set(zip(t_ns[earlier].tolist(), power_w[earlier].tolist(), strict=True))
        if not readings >= set(zip(t_ns[later].tolist(), power_w[later].tolist(), strict=True)):
            raise SensorError(
                f"{log_name}: card {key.text} has two series of readings for one time: logs of several machines in one "
                "file need a column hostname"
            )


def spread_over_second(t_ns: IntArray) -> IntArray:
    """Spread readings whose times were truncated to a whole second evenly over that second."""
    seconds, second_of, count = np.unique(t_ns, return_inverse=True, return_counts=True)
    usual = int(np.median(count))
    if usual < 2:
        return t_ns
    order = np.argsort(second_of, kind="stable")
    starts = np.concatenate(([0], np.cumsum(count)[:-1]))
    within = np.arange(len(t_ns)) - starts[second_of[order]]
    # The log may begin within its first second: that second's readings are placed at its end.
    late = np.where((second_of[order] == 0) & (count[0] < usual), usual - count[0], 0)
    spread_ns = np.empty_like(t_ns)
    spread_ns[order] = seconds[second_of[order]] + (within + late) * NS_PER_S // np.maximum(
        count[second_of[order]], usual
    )
    return spread_ns


def select_log_cards(recording: Recording, cards: Mapping[str, Meter]) -> Recording:
    """Return a recording of the chosen cards only, with the domains of the trace.

    Args:
        recording: A power log.
        cards: Meter of the log by domain, such as "gpu:0".
    """
    meters, series = [], []
    for name, meter in cards.items():
        domain = Domain("gpu", int(name.partition(":")[2]))
        channels = {c.key: replace(c, domain=domain) for c in meter.channels}
        meters.append(replace(meter, domain=domain, channels=tuple(channels.values())))
        series += [replace(s, channel=channels[s.channel.key]) for s in recording.series if s.channel.key in channels]
    return replace(recording, meters=tuple(meters), series=tuple(series))
