"""Numbers and units in the cells and headers of power logs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import nan

LONGEST_CELL = 200  # characters
MOST_CARD_W = 4000.0  # no card draws more

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
def amount(cell: str) -> Amount | None:
    """Parse a cell such as `200.5 W`, `200,5`, `1.234,5 mW` or `1,234.5`; None if it is not a number."""
    match = _CELL.fullmatch(cell.strip().strip('"')) if len(cell) <= LONGEST_CELL else None
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


def power_scale(unit: str) -> float | None:
    """Return watts per unit; None if it is not a unit of power. `MW` is a megawatt, `mW` and `mw` are milliwatts."""
    return 1e6 if unit == "MW" else _POWER_UNITS.get(unit.lower())


def energy_scale(unit: str) -> float | None:
    """Return joules per unit; None if it is not a unit of energy."""
    return 1e6 if unit == "MJ" else _ENERGY_UNITS.get(unit.lower())


def time_unit_ns(unit: str) -> int | None:
    """Return nanoseconds per unit; None if it is not a unit of time."""
    return _TIME_UNITS_NS.get(unit.lower())


def counter_value(cell: str) -> float:
    """Return the number in a counter's cell; NaN if it has none."""
    number = amount(cell)
    return nan if number is None else number.value


def split_unit(name: str) -> tuple[str, str]:
    """Split a column's name into its plain form and its unit: `Power.Draw [W]` is (`power.draw`, `W`).

    The unit is in brackets at the end, or after the last underscore.
    """
    name = " ".join(name[:LONGEST_CELL].strip().strip('"').lstrip("#").split())
    bracket = re.fullmatch(r"(.*?)[ _]*[\[(] *([^\[\]()]*?) *[\])]", name)
    if bracket is not None and bracket.group(1):
        return _plain(bracket.group(1)), bracket.group(2)
    base, _, unit = _plain(name).rpartition("_")
    is_unit = power_scale(unit) or energy_scale(unit) or time_unit_ns(unit)
    return (base, unit) if base and is_unit else (_plain(name), "")


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
