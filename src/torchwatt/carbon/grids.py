"""A grid's number over time: one that always holds, or one for each hour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor
from torchwatt.core.hours import hour_of


@dataclass(frozen=True, slots=True)
class Grid:
    """One candidate for a place in the formula, best first in a plan.

    Exactly one of `always` and `by_hour` is used. `level` says where it stands in the order of resolution.
    """

    level: str  # user, facility, hourly file, yearly table
    label: str
    always: Factor | None = None
    by_hour: Mapping[int, Factor] = field(default_factory=dict)

    def missing(self, hours: Iterable[int]) -> list[int]:
        """Return the hours that it has no number for."""
        return [] if self.always is not None else [hour for hour in hours if hour not in self.by_hour]

    def factors(self, hours: Iterable[int]) -> tuple[Factor, ...]:
        """Return the factors of some hours, each once.

        Raises:
            FactorError: An hour is missing.
        """
        if self.always is not None:
            return (self.always,)
        wanted = list(hours)
        if gaps := self.missing(wanted):
            raise FactorError(f"{self.label} has no number for {len(gaps)} of {len(wanted)} hours of the run")
        return tuple(dict.fromkeys(self.by_hour[hour] for hour in wanted))


def fixed(level: str, factor: Factor) -> Grid:
    """Return a grid whose one number always holds."""
    return Grid(level, f"{factor.source_name} {factor.zone}".strip(), factor)


def hourly(label: str, factors: Iterable[Factor]) -> Grid:
    """Return a grid of factors that hold one hour each.

    Raises:
        FactorError: Two factors claim one hour, or one does not say which hour it is about.
    """
    by_hour: dict[int, Factor] = {}
    for factor in factors:
        if factor.valid_from is None:
            raise FactorError(f"{label}: factor {factor.factor_id} of one hour does not say which (valid_from)")
        hour = hour_of(factor.valid_from)
        if by_hour.setdefault(hour, factor) is not factor:
            raise FactorError(f"{label}: two numbers for {factor.valid_from:%Y-%m-%dT%H:00Z}")
    return Grid("hourly file", label, None, by_hour)
