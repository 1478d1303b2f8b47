"""Classifies the columns of a power log by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import nan

from torchwatt.sensors.logs.log_cards import CARD_COLUMNS, LogCard, parse_card

MAX_CELL_CHARS = 200  # characters
MAX_CARD_W = 4000.0  # no card draws more

_POWER_UNITS = {
    "w": 1.0, "watt": 1.0, "watts": 1.0,
    "mw": 1e-3, "milliwatt": 1e-3, "milliwatts": 1e-3,
    "uw": 1e-6, "µw": 1e-6, "μw": 1e-6, "microwatt": 1e-6, "microwatts": 1e-6,
    "kw": 1e3, "kilowatt": 1e3, "kilowatts": 1e3,
}  # fmt: skip
_ENERGY_UNITS = {
    "j": 1.0, "joule": 1.0, "joules": 1.0, "mj": 1e-3, "millijoule": 1e-3, "millijoules": 1e-3,
    "uj": 1e-6, "µj": 1e-6, "μj": 1e-6, "kj": 1e3, "wh": 3600.0, "mwh": 3.6, "kwh": 3.6e6,
}  # fmt: skip
_TIME_UNITS_NS = {
    "ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": 10**9, "sec": 10**9, "secs": 10**9,
    "seconds": 10**9, "milliseconds": 1_000_000, "microseconds": 1_000, "nanoseconds": 1,
}  # fmt: skip
_CELL = re.compile(r"([-+]?[\d.,'\u00a0\u202f]*\d[\d.,]*(?:[eE][-+]?\d+)?)\s*([^\W\d_]*)")
_NO_READING = re.compile(
    r"|-+|\[.*\]|n/?a\.?|n/s|nan|none|null|err!?|error!?|unknown( error)?|not supported|unavailable", re.IGNORECASE
)
_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_GROUPS = re.compile(r"[-+]?\d{1,3}(?:([.,'\u00a0\u202f])\d{3})(?:\1\d{3})*(?:[.,]\d+)?")


@dataclass(frozen=True, slots=True)
class Amount:
    """A number and its unit, "" if the cell has none; `doubtful` for 1,234: thousands or decimals."""

    value: float
    unit: str = ""
    doubtful: bool = False


@lru_cache(maxsize=1 << 14)
def parse_amount(cell: str) -> Amount | None:
    """Parse a cell such as `200.5 W`, `200,5`, `1.234,5 mW` or `1,234.5`; None if it is not a number."""
    match = _CELL.fullmatch(cell.strip().strip('"')) if len(cell) <= MAX_CELL_CHARS else None
    if match is None:
        return None
    digits, unit = match.groups()
    if _PLAIN.fullmatch(digits):
        return Amount(float(digits), unit)
    if _COMMA.fullmatch(digits):
        return Amount(float(digits.replace(",", ".")), unit, doubtful=_GROUPS.fullmatch(digits) is not None)
    grouped = _GROUPS.fullmatch(digits)
    if grouped is None:
        return None
    mark = grouped.group(1)
    return Amount(float(digits.replace(mark, "").replace(",", ".")), unit)


def is_no_reading(cell: str) -> bool:
    """Return whether a cell says that there is no reading: empty, `N/A`, `[Unknown Error]`, `ERR!`, `NaN`."""
    return _NO_READING.fullmatch(cell.strip().strip('"').strip()) is not None


def number_form(cell: str) -> str:
    """Return the text after the integer digits, with each digit replaced by 0: `.00 W` for `200.25 W`."""
    return re.sub(r"\d", "0", re.sub(r"^[-+]?\d+", "", cell))


def power_scale(unit: str) -> float | None:
    """Return watts per unit; None if it is not a unit of power. `MW` is a megawatt, `mW` and `mw` are milliwatts."""
    return 1e6 if unit == "MW" else _POWER_UNITS.get(unit.lower())


def energy_scale(unit: str) -> float | None:
    """Return joules per unit; None if it is not a unit of energy."""
    return 1e6 if unit == "MJ" else _ENERGY_UNITS.get(unit.lower())


def time_unit_ns(unit: str) -> int | None:
    """Return nanoseconds per unit; None if it is not a unit of time."""
    return _TIME_UNITS_NS.get(unit.lower())


def parse_counter(cell: str) -> float:
    """Return the number in a counter's cell; NaN if it has none."""
    number = parse_amount(cell)
    return nan if number is None else number.value


def split_unit(name: str) -> tuple[str, str]:
    """Split a column's name into its plain form and its unit: `Power.Draw [W]` is (`power.draw`, `W`).

    The unit is in brackets at the end, or after the last underscore.
    """
    name = " ".join(name[:MAX_CELL_CHARS].strip().strip('"').lstrip("#").split())
    bracket = re.fullmatch(r"(.*?)[ _]*[\[(] *([^\[\]()]*?) *[\])]", name)
    if bracket is not None and bracket.group(1):
        return _plain(bracket.group(1)), bracket.group(2)
    base, _, unit = _plain(name).rpartition("_")
    is_unit = power_scale(unit) or energy_scale(unit) or time_unit_ns(unit)
    return (base, unit) if base and is_unit else (_plain(name), "")


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


TIMES = (
    "t", "t_unix", "unix", "unix_time", "unixtime", "epoch", "epoch_time", "timestamp", "@timestamp", "timestamp_unix",
    "datetime", "date_time", "time", "ts", "wall_time", "time_utc", "timestamp_utc", "date/time", "date",
)  # fmt: skip
# Instantaneous power is preferred to the mean over a second.
_INSTANT = (
    "power.draw.instant", "power_draw_instant", "instant_power_draw", "instantaneous_power_draw",
    "dcgm_fi_dev_power_usage_instant",
)  # fmt: skip
_MEAN = (
    "power.draw", "power_draw", "power.draw.average", "average_power_draw", "pwr", "dcgm_fi_dev_power_usage",
)  # fmt: skip
_OTHER_POWERS = (
    "power", "gpu_power", "gpu_power_draw", "gpu_power_usage", "power_usage", "power_consumption", "socket_power",
    "current_socket_power", "average_socket_power", "current_socket_graphics_package_power",
    "average_graphics_package_power", "board_power_draw", "watts", "w", "value_w",
)  # fmt: skip
_ORDER = {name: place for place, name in enumerate((*_INSTANT, *_MEAN, *_OTHER_POWERS))}
# Words in names of powers that a card does not draw.
_NOT_DRAWN = frozenset(
    [
        "limit",
        "max",
        "min",
        "cap",
        "default",
        "enforced",
        "requested",
        "module",
        "management",
        "state",
        "mode",
        "cpu",
        "dram",
        "ram",
        "total",
        "system",
        "node",
        "psu",
        "fan",
        "peak",
        "supply",
        "violation",
        "reason",
        "brake",
        "slowdown",
        "current_limit",
        "budget",
    ]
)
_ENERGIES = frozenset(
    [
        "energy",
        "total_energy_consumption",
        "energy_consumed",
        "gpu_energy_consumed",
        "gpu_energy",
        "total_energy",
        "totec",
        "energy_counter",
        "dcgm_fi_dev_total_energy_consumption",
    ]
)
_DCGM_UNITS = {"dcgm_fi_dev_total_energy_consumption": "mJ", "totec": "mJ"}
_METRICS = ("metric", "__name__", "metric_name", "series", "field", "_field")
_CARD_IN_NAME = re.compile(r"(?:^|.*[^a-z])(?:gpu|card|cuda|device)[ _:\[]?(\d{1,3})(?!\d).*", re.IGNORECASE)
_CARD_ALONE = re.compile(r"(?:gpu|card|cuda)[ _:\[]?(\d{1,3})\]?", re.IGNORECASE)
_LABELS = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class LogQuantity:
    """A power or an energy counter: `scale` is watts or joules per unit, None where each cell must name its unit."""

    name: str
    kind: str  # "power" or "counter"
    scale: float | None
    sensor: str
    rank: int = 0  # of several powers of one card, that of the lowest rank is read


@dataclass(slots=True)
class UnreadCells:
    """Cells that are neither a number of the column's unit nor say that there is no reading."""

    count: int = 0
    first: str = ""

    def add(self, count: int, first: str) -> None:
        """Add cells, of which the place and the text of the first are given."""
        self.count += count
        self.first = self.first or first


@dataclass(slots=True)
class CardReadings:
    """The readings of one card: (t_ns, value) by column, in the order of the file."""

    values: dict[LogQuantity, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    absurd: dict[LogQuantity, str] = field(default_factory=dict)  # the first cell outside the physical range
    doubtful: dict[LogQuantity, str] = field(default_factory=dict)  # the first ambiguous cell, such as 1,234
    commas: set[LogQuantity] = field(default_factory=set)  # columns with a certainly decimal comma
    unread: dict[LogQuantity, UnreadCells] = field(default_factory=lambda: defaultdict(UnreadCells))


@dataclass(frozen=True, slots=True)
class LogColumns:
    """Positions of the columns of a row; `time` has two if date and time of day are separate columns."""

    names: tuple[str, ...]
    time: tuple[int, ...]
    time_unit: str
    quantities: tuple[tuple[int, LogQuantity], ...]
    cards: Mapping[str, int]
    wide: Mapping[int, LogCard]  # the card of each column, if cards have separate columns
    metric: int | None = None  # with one sample per row: the column that names the quantity in `value`
    value: int | None = None


def classify_columns(header: Sequence[str]) -> LogColumns | None:
    """Classify the columns of a header; None without a time column, or without power and energy columns."""
    plain = [split_unit(name) for name in header]
    bases = [base for base, _ in plain]
    time = _time_columns(plain)
    if time is None:
        return None
    places_of = {kind: [bases.index(name) for name in names if name in bases] for kind, names in CARD_COLUMNS.items()}
    cards = {kind: places[0] for kind, places in places_of.items() if places}
    metric = next((bases.index(name) for name in _METRICS if name in bases), None)
    value = bases.index("value") if "value" in bases else None
    quantities, wide = _quantity_columns(header, plain)
    if not quantities and (metric is None or value is None):
        return None
    places, unit = time
    if quantities:
        metric = value = None
    return LogColumns(tuple(header), places, unit, quantities, cards, wide, metric, value)


def _time_columns(plain: Sequence[tuple[str, str]]) -> tuple[tuple[int, ...], str] | None:
    bases = [base for base, _ in plain]
    exact = [i for i, (base, unit) in enumerate(plain) if base in TIMES and time_unit_ns(unit)]
    if "date" in bases and "time" in bases:
        return (bases.index("date"), bases.index("time")), ""
    candidates = exact or [bases.index(name) for name in TIMES if name in bases]
    if not candidates:
        return None
    unit = plain[candidates[0]][1]
    return (candidates[0],), unit if time_unit_ns(unit) else ""


def _quantity_columns(
    header: Sequence[str], plain: Sequence[tuple[str, str]]
) -> tuple[tuple[tuple[int, LogQuantity], ...], Mapping[int, LogCard]]:
    """Return the columns of power and energy, and their cards if each card has its own columns."""
    common: list[tuple[int, LogQuantity]] = []
    single: list[tuple[int, LogQuantity]] = []
    wide: dict[int, LogCard] = {}
    for place, (name, (base, unit)) in enumerate(zip(header, plain, strict=True)):
        labelled = parse_series(name)
        quantity, column_card = labelled if labelled is not None else (_classify_quantity(name, base, unit), None)
        if column_card is None and (match := _CARD_IN_NAME.fullmatch(name.strip().strip('"'))):
            column_card = LogCard(index=str(int(match.group(1))))
            quantity = quantity or _single_card_quantity(name, base, unit)
        if quantity is not None and column_card is not None:
            wide[place] = column_card
            single.append((place, quantity))
        elif quantity is not None:
            common.append((place, quantity))
    return (tuple(common), {}) if common else (tuple(single), wide)


def _classify_quantity(name: str, base: str, unit: str) -> LogQuantity | None:
    if base in _ENERGIES:
        scale = energy_scale(unit or _DCGM_UNITS.get(base, ""))
        return LogQuantity(name.strip(), "counter", scale, "nvml_energy_counter")
    if base not in _ORDER and not re.search("power|watt|pwr", base):
        return None
    tokens = set(re.split(r"[._/ ]", base))
    if base not in _ORDER and tokens & _NOT_DRAWN:
        return None
    scale = power_scale(unit) if unit else 1.0
    if scale is None:
        return None  # power in per cent, a power state
    sensor = "nvml_power_instant" if base in _INSTANT else "nvml_power" if base in _MEAN else "replay"
    return LogQuantity(name.strip(), "power", scale, sensor, _ORDER.get(base, len(_ORDER)))


def _single_card_quantity(name: str, base: str, unit: str) -> LogQuantity | None:
    """Return the power of a column named by its card: `GPU 0 [W]`, or `GPU 0` whose cells have the unit."""
    if unit and power_scale(unit) is not None and not set(re.split(r"[._/ ]", base)) & _NOT_DRAWN:
        return LogQuantity(name.strip(), "power", power_scale(unit), "replay", len(_ORDER))
    alone = _CARD_ALONE.fullmatch(name.strip().strip('"'))
    return LogQuantity(name.strip(), "power", None, "replay", len(_ORDER)) if alone else None


@lru_cache(maxsize=1 << 12)
def parse_series(metric: str) -> tuple[LogQuantity | None, LogCard] | None:
    """Parse the name of a Prometheus series such as `DCGM_FI_DEV_POWER_USAGE{gpu="0", UUID="GPU-..."}`.

    Returns:
        Its quantity (None if it is neither power nor energy) and its card; None if the name has no labels.

    A series without a name, as in Grafana's legends, is power whose cells must have the unit.
    """
    name, brace, label_text = metric.strip().strip('"').replace('""', '"').partition("{")
    if not brace:
        return None
    base, unit = split_unit(name)
    labels = {key.lower(): value for key, value in _LABELS.findall(label_text)}
    if not name:
        base, unit = split_unit(labels.get("__name__", ""))
    cells = ((kind, next((labels[key] for key in names if key in labels), "")) for kind, names in CARD_COLUMNS.items())
    labelled_card = parse_card(tuple((kind, cell) for kind, cell in cells if cell))
    if not base:
        return LogQuantity(metric.strip(), "power", None, "replay", len(_ORDER)), labelled_card
    return _classify_quantity(name, base, unit), labelled_card
