"""Classifies the columns of a power log by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torchwatt.sensors.logs.cards import COLUMNS, Card, card
from torchwatt.sensors.logs.quantities import energy_scale, power_scale, split_unit, time_unit_ns

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
_OTHER = (
    "power", "gpu_power", "gpu_power_draw", "gpu_power_usage", "power_usage", "power_consumption", "socket_power",
    "current_socket_power", "average_socket_power", "current_socket_graphics_package_power",
    "average_graphics_package_power", "board_power_draw", "watts", "w", "value_w",
)  # fmt: skip
_ORDER = {name: place for place, name in enumerate((*_INSTANT, *_MEAN, *_OTHER))}
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
class Quantity:
    """A power or an energy counter: `scale` is watts or joules per unit, None where each cell must name its unit."""

    name: str
    kind: str  # "power" or "counter"
    scale: float | None
    sensor: str
    rank: int = 0  # of several powers of one card, that of the lowest rank is read


@dataclass(frozen=True, slots=True)
class Columns:
    """Positions of the columns of a row; `time` has two if date and time of day are separate columns."""

    names: tuple[str, ...]
    time: tuple[int, ...]
    time_unit: str
    quantities: tuple[tuple[int, Quantity], ...]
    cards: Mapping[str, int]
    wide: Mapping[int, Card]  # the card of each column, if cards have separate columns
    metric: int | None = None  # with one sample per row: the column that names the quantity in `value`
    value: int | None = None


def columns_of(header: Sequence[str]) -> Columns | None:
    """Classify the columns of a header; None without a time column, or without power and energy columns."""
    plain = [split_unit(name) for name in header]
    bases = [base for base, _ in plain]
    time = _time(plain)
    if time is None:
        return None
    places_of = {kind: [bases.index(name) for name in names if name in bases] for kind, names in COLUMNS.items()}
    cards = {kind: places[0] for kind, places in places_of.items() if places}
    metric = next((bases.index(name) for name in _METRICS if name in bases), None)
    value = bases.index("value") if "value" in bases else None
    quantities, wide = _quantities(header, plain)
    if not quantities and (metric is None or value is None):
        return None
    places, unit = time
    if quantities:
        metric = value = None
    return Columns(tuple(header), places, unit, quantities, cards, wide, metric, value)


def _time(plain: Sequence[tuple[str, str]]) -> tuple[tuple[int, ...], str] | None:
    bases = [base for base, _ in plain]
    exact = [i for i, (base, unit) in enumerate(plain) if base in TIMES and time_unit_ns(unit)]
    if "date" in bases and "time" in bases:
        return (bases.index("date"), bases.index("time")), ""
    candidates = exact or [bases.index(name) for name in TIMES if name in bases]
    if not candidates:
        return None
    unit = plain[candidates[0]][1]
    return (candidates[0],), unit if time_unit_ns(unit) else ""


def _quantities(
    header: Sequence[str], plain: Sequence[tuple[str, str]]
) -> tuple[tuple[tuple[int, Quantity], ...], Mapping[int, Card]]:
    """Return the columns of power and energy, and their cards if each card has its own columns."""
    common: list[tuple[int, Quantity]] = []
    single: list[tuple[int, Quantity]] = []
    wide: dict[int, Card] = {}
    for place, (name, (base, unit)) in enumerate(zip(header, plain, strict=True)):
        labelled = series_of(name)
        quantity, column_card = labelled if labelled is not None else (_quantity(name, base, unit), None)
        if column_card is None and (match := _CARD_IN_NAME.fullmatch(name.strip().strip('"'))):
            column_card = Card(index=str(int(match.group(1))))
            quantity = quantity or _of_one_card(name, base, unit)
        if quantity is not None and column_card is not None:
            wide[place] = column_card
            single.append((place, quantity))
        elif quantity is not None:
            common.append((place, quantity))
    return (tuple(common), {}) if common else (tuple(single), wide)


def _quantity(name: str, base: str, unit: str) -> Quantity | None:
    if base in _ENERGIES:
        scale = energy_scale(unit or _DCGM_UNITS.get(base, ""))
        return Quantity(name.strip(), "counter", scale, "nvml_energy_counter")
    if base not in _ORDER and not re.search("power|watt|pwr", base):
        return None
    tokens = set(re.split(r"[._/ ]", base))
    if base not in _ORDER and tokens & _NOT_DRAWN:
        return None
    scale = power_scale(unit) if unit else 1.0
    if scale is None:
        return None  # power in per cent, a power state
    sensor = "nvml_power_instant" if base in _INSTANT else "nvml_power" if base in _MEAN else "replay"
    return Quantity(name.strip(), "power", scale, sensor, _ORDER.get(base, len(_ORDER)))


def _of_one_card(name: str, base: str, unit: str) -> Quantity | None:
    """Return the power of a column named by its card: `GPU 0 [W]`, or `GPU 0` whose cells have the unit."""
    if unit and power_scale(unit) is not None and not set(re.split(r"[._/ ]", base)) & _NOT_DRAWN:
        return Quantity(name.strip(), "power", power_scale(unit), "replay", len(_ORDER))
    alone = _CARD_ALONE.fullmatch(name.strip().strip('"'))
    return Quantity(name.strip(), "power", None, "replay", len(_ORDER)) if alone else None


@lru_cache(maxsize=1 << 12)
def series_of(metric: str) -> tuple[Quantity | None, Card] | None:
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
    cells = ((kind, next((labels[key] for key in names if key in labels), "")) for kind, names in COLUMNS.items())
    labelled_card = card(tuple((kind, cell) for kind, cell in cells if cell))
    if not base:
        return Quantity(metric.strip(), "power", None, "replay", len(_ORDER)), labelled_card
    return _quantity(name, base, unit), labelled_card
