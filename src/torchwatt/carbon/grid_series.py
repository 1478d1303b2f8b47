"""Factors of a grid over time: one constant, or one for each hour."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from math import fsum

from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, with_factor_id
from torchwatt.core.units import hour_of, hour_start

HOUR = timedelta(hours=1)
Part = tuple[datetime, datetime, Factor]


@dataclass(frozen=True, slots=True)
class GridSeries:
    """One candidate for the grid factor of a run; a plan lists the preferred ones first.

    Exactly one of `always` and `by_hour` is used. `level` is its place in the order of docs/carbon.md.
    """

    level: str  # user, facility, hourly file, yearly table
    label: str
    always: Factor | None = None
    by_hour: Mapping[int, Factor] = field(default_factory=dict)

    def find_missing(self, hours: Iterable[int]) -> list[int]:
        """Return the hours without a factor."""
        return [] if self.always is not None else [hour for hour in hours if hour not in self.by_hour]

    def factors(self, hours: Iterable[int]) -> tuple[Factor, ...]:
        """Return the factors of some hours, each once.

        Raises:
            FactorError: An hour is missing.
        """
        if self.always is not None:
            return (self.always,)
        hour_list = list(hours)
        if gaps := self.find_missing(hour_list):
            missing = f"{len(gaps)} of {len(hour_list)} hours of the run ({name_hours(gaps)})"
            raise FactorError(f"{self.label} has no number for {missing}")
        return tuple(dict.fromkeys(self.by_hour[hour] for hour in hour_list))


def constant_series(level: str, factor: Factor) -> GridSeries:
    """Return a grid with one constant factor."""
    return GridSeries(level, f"{factor.source_name} {factor.zone}".strip(), factor)


def hourly_series(label: str, factors: Iterable[Factor]) -> GridSeries:
    """Return a grid of factors that are valid for an hour or less: 15 minutes, or an hour of another time zone.

    Energy is metered by hour of UTC, so shorter intervals are combined: the value is their mean weighted by time, `lo`
    and `hi` are the smallest and the largest of them. An hour that is not completely covered has no factor.

    Raises:
        FactorError: Two factors overlap in time, or one has no `valid_from`.
    """
    by_hour: dict[int, Factor] = {}
    parts: dict[int, list[Part]] = defaultdict(list)
    for factor in factors:
        if factor.valid_from is None:
            raise FactorError(f"{label}: factor {factor.factor_id} of one hour does not say which (valid_from)")
        start, end = factor.valid_from, factor.valid_to or factor.valid_from + HOUR
        if not timedelta(0) < end - start <= HOUR:
            raise FactorError(
                f"{label}: {start:%Y-%m-%dT%H:%MZ} to {end:%Y-%m-%dT%H:%MZ} is not within an hour's length"
            )
        hour = hour_of(start)
        if start == hour_start(hour) and end == start + HOUR:
            if by_hour.setdefault(hour, factor) is not factor:
                raise FactorError(f"{label}: two numbers for {start:%Y-%m-%dT%H:00Z}")
            continue
        for part_hour in range(hour, hour_of(end - timedelta.resolution) + 1):
            cut = max(start, hour_start(part_hour)), min(end, hour_start(part_hour + 1))
            parts[part_hour].append((*cut, factor))
    for hour, hour_parts in parts.items():
        mean = _mean_of_parts(label, hour, sorted(hour_parts, key=lambda part: part[:2]))
        if hour in by_hour:
            raise FactorError(f"{label}: two numbers for {hour_start(hour):%Y-%m-%dT%H:00Z}")
        if mean is not None:
            by_hour[hour] = mean
    return GridSeries("hourly file", label, None, by_hour)


def _mean_of_parts(label: str, hour: int, parts: Sequence[Part]) -> Factor | None:
    """Return the mean of the parts of an hour, weighted by time; None if they do not cover it."""
    for (_, end, _), (start, _, _) in pairwise(parts):
        if start < end:
            raise FactorError(f"{label}: two numbers for {start:%Y-%m-%dT%H:%MZ}")
    if sum((end - start for start, end, _ in parts), timedelta(0)) != HOUR:
        return None
    values = [factor.value for _, _, factor in parts]
    ends = [value for _, _, f in parts for value in (f.lo, f.hi, f.value) if value is not None]
    template = parts[0][2]
    note = f"mean of {len(parts)} values in the hour; lo and hi are the least and the greatest"
    differ = min(ends) < max(ends)
    return with_factor_id(
        replace(
            template,
            value=fsum(v * ((end - start) / HOUR) for v, (start, end, _) in zip(values, parts, strict=True)),
            lo=min(ends) if differ else None,
            hi=max(ends) if differ else None,
            u=None,
            coverage_note="; ".join(filter(None, (template.coverage_note, note))),
            valid_from=hour_start(hour),
            valid_to=hour_start(hour + 1),
            is_estimated=True if any(f.is_estimated for _, _, f in parts) else template.is_estimated,
        )
    )


def name_hours(hours: Sequence[int]) -> str:
    """Return the first three hours and the number of the others, for a message."""
    shown = ", ".join(f"{hour_start(hour):%Y-%m-%dT%H:00Z}" for hour in hours[:3])
    return shown + (f" and {len(hours) - 3} more" if len(hours) > 3 else "")
