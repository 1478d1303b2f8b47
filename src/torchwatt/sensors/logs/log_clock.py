"""Parses times of logs: text with and without a date or a zone, and numbers since 1970 in any unit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo

from torchwatt.core.errors import ConfigError
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.logs.log_columns import MAX_CELL_CHARS, time_unit_ns

LATEST_NS = 2**62  # the year 2116: differences of times fit 64 bits
_HOUR_NS = 3600 * NS_PER_S
_DAY_NS = 24 * _HOUR_NS
_NUMBER = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?")
_CLOCK = r"(?P<h>\d{1,2}):(?P<m>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d+))?)?(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?"
_ZONE = r"(?:\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2}|[+-]\d{2}))?"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"(?P<mon>{'|'.join(_MONTHS)})[a-z]*\.?"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?P<Y>\d{{4}})[-/.](?P<M>\d{{1,2}})[-/.](?P<D>\d{{1,2}})[T\s,_]+{_CLOCK}{_ZONE}",
        rf"(?P<Y>\d{{4}})(?P<M>\d{{2}})(?P<D>\d{{2}})[T\s,_-]+{_CLOCK}{_ZONE}",
        r"(?P<Y>\d{4})-?(?P<M>\d{2})-?(?P<D>\d{2})[T\s_-](?P<h>\d{2})(?P<m>\d{2})(?P<s>\d{2})(?:[.,](?P<f>\d+))?"
        + _ZONE,
        rf"(?P<one>\d{{1,2}})(?P<sep>[-/.])(?P<two>\d{{1,2}})[-/.](?P<Y>\d{{4}})[T\s,]+{_CLOCK}{_ZONE}",
        rf"{_WEEKDAY}{_MONTH}\s+(?P<D>\d{{1,2}})\s+{_CLOCK}{_ZONE}\s+(?P<Y>\d{{4}})",
        rf"{_WEEKDAY}{_MONTH}\s+(?P<D>\d{{1,2}}),?\s+(?P<Y>\d{{4}}),?\s+{_CLOCK}{_ZONE}",
        rf"{_WEEKDAY}(?P<D>\d{{1,2}})[\s/-]{_MONTH}[\s/-](?P<Y>\d{{4}})[\s:,]+{_CLOCK}{_ZONE}",
        rf"{_CLOCK}{_ZONE}",
    )
)


def parse_zone(name: str | None) -> tzinfo | None:
    """Return a time zone by its IANA name; None for None.

    Raises:
        ConfigError: The name is not in the IANA database.
    """
    if name is None:
        return None
    try:
        return UTC if name.upper() == "UTC" else ZoneInfo(name)
    except (ValueError, OSError, LookupError) as error:  # ZoneInfoNotFoundError is a LookupError
        raise ConfigError(f"no time zone {name!r}: give a name such as Europe/Paris or America/New_York") from error


@dataclass(slots=True)
class LogClock:
    """Parses the times of one log, line by line.

    Text without a zone is read in `zone`, else as UTC. The other public fields record the assumptions made.
    """

    zone: tzinfo | None = None
    zoneless: bool = False  # text without a zone was read as UTC
    dateless: bool = False  # times of day only: the first day is 1 January 1970
    set_back: int = 0  # number of one-hour steps back at the end of summer time, which were undone
    doubtful: str = ""  # a date whose order of day and month is ambiguous
    whole_seconds: bool = True  # no time had a fraction
    _previous_ns: int | None = None
    _shift_ns: int = 0
    _days: int = 0
    _forms: list[re.Pattern[str]] = field(default_factory=lambda: list(_FORMS))

    def read(self, cell: str, unit: str) -> int | None:
        """Return unix nanoseconds; None if the cell is not a time.

        Args:
            cell: Text of the cell.
            unit: Unit in the column's name, such as "ns" or "ms", or ""; applies to numbers only.
        """
        cell = cell.strip().strip('"')
        if not cell or len(cell) > MAX_CELL_CHARS:
            return None
        t_ns = _from_number(cell, unit) if _NUMBER.fullmatch(cell) else self._from_text(cell)
        if t_ns is None or abs(t_ns) >= LATEST_NS:
            return None
        self.whole_seconds &= t_ns % NS_PER_S == 0
        return t_ns

    def _from_text(self, cell: str) -> int | None:
        for form in self._forms:
            match = form.fullmatch(cell)
            if match is not None:
                if form is not self._forms[0]:
                    self._forms.remove(form)
                    self._forms.insert(0, form)
                return self._place_time(match)
        return None

    def _place_time(self, match: re.Match[str]) -> int | None:
        parts = match.groupdict()
        of_day_ns = _of_day_ns(parts)
        if of_day_ns is None:
            return None
        if parts.get("Y") is None:
            return self._dateless(of_day_ns)
        day = self._day(parts)
        if day is None:
            return None
        t_ns = day * _DAY_NS + of_day_ns
        zone = parts.get("zone")
        return t_ns - _offset_ns(zone) if zone else self._local(t_ns)

    def _day(self, parts: dict[str, str]) -> int | None:
        month = _MONTHS.index(parts["mon"].lower()) + 1 if parts.get("mon") else int(parts.get("M") or 0)
        day = int(parts.get("D") or 0)
        if parts.get("one"):
            first_number, second_number = int(parts["one"]), int(parts["two"])
            month_first = parts["sep"] == "/" and first_number <= 12
            day, month = (second_number, first_number) if month_first else (first_number, second_number)
            if parts["sep"] != "." and first_number <= 12 and second_number <= 12 and first_number != second_number:
                self.doubtful = self.doubtful or f"{parts['one']}{parts['sep']}{parts['two']}{parts['sep']}{parts['Y']}"
        return _day_number(int(parts["Y"]), month, day)

    def _dateless(self, of_day_ns: int) -> int:
        self.dateless = True
        t_ns = self._days * _DAY_NS + of_day_ns
        if self._previous_ns is not None and t_ns < self._previous_ns - _DAY_NS // 2:  # midnight has passed
            self._days += 1
            t_ns += _DAY_NS
        self._previous_ns = t_ns
        return t_ns

    def _local(self, t_ns: int) -> int:
        """Return the instant of a local time; steps back at the end of summer time are undone."""
        if self.zone is not None:
            return self._in_zone(t_ns, self.zone)
        self.zoneless = True
        previous_ns, t_ns = self._previous_ns, t_ns + self._shift_ns
        if previous_ns is not None and _is_summer_end(t_ns - self._shift_ns, t_ns - previous_ns):
            self._shift_ns += _HOUR_NS
            self.set_back += 1
            t_ns += _HOUR_NS
        self._previous_ns = t_ns
        return t_ns

    def _in_zone(self, t_ns: int, zone: tzinfo) -> int:
        seconds, rest_ns = divmod(t_ns, NS_PER_S)
        local = datetime(1970, 1, 1, tzinfo=zone) + timedelta(seconds=seconds)
        earlier_ns, later_ns = (int(local.replace(fold=fold).timestamp()) * NS_PER_S + rest_ns for fold in (0, 1))
        went_back = self._previous_ns is not None and earlier_ns < self._previous_ns - _HOUR_NS // 2
        self._previous_ns = later_ns if went_back else earlier_ns
        return self._previous_ns


def _is_summer_end(local_ns: int, step_ns: int) -> bool:
    """Return whether a step of a local clock is the end of summer time: 1 h back, on a Sunday before 04:00."""
    if abs(step_ns + _HOUR_NS) > _HOUR_NS // 20:
        return False
    days, of_day_ns = divmod(local_ns, _DAY_NS)
    return (days + 3) % 7 == 6 and of_day_ns < 4 * _HOUR_NS  # 1 January 1970 was a Thursday


def _of_day_ns(parts: dict[str, str]) -> int | None:
    hour, minute, second = int(parts["h"]), int(parts["m"]), int(parts.get("s") or 0)
    if half := parts.get("half"):
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half.lower() == "p" else 0)
    if hour > 23 or minute > 59 or second > 60:
        return None
    fraction = int((parts.get("f") or "0").ljust(9, "0")[:9])
    return ((hour * 60 + minute) * 60 + second) * NS_PER_S + fraction


@lru_cache(maxsize=64)
def _day_number(year: int, month: int, day: int) -> int | None:
    try:
        return date(year, month, day).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None


def _offset_ns(zone: str) -> int:
    if zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return (-1 if zone[0] == "-" else 1) * (int(digits[:2]) * 60 + int(digits[2:])) * 60 * NS_PER_S


def _from_number(cell: str, unit: str) -> int | None:
    try:
        number = Decimal(cell.replace(",", "."))
        scale = time_unit_ns(unit) or _unit_by_size(float(number))
        t_ns = int((number * scale).to_integral_value())  # a float would lose digits
    except (ArithmeticError, ValueError):  # an excessive exponent
        return None
    return t_ns if abs(t_ns) < LATEST_NS else None


def _unit_by_size(number: float) -> int:
    """Return the nanoseconds of a number's unit: seconds since 1970 have 10 digits, and each unit three more."""
    sizes = ((10**11, NS_PER_S), (10**14, 1_000_000), (10**17, 1_000))
    return next((ns for limit, ns in sizes if abs(number) < limit), 1)
