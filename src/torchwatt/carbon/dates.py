"""Validity of factors: each is applied within its dates only, unless the user allows expired factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from torchwatt.carbon.embodied import Embodied
from torchwatt.carbon.grids import Grid
from torchwatt.carbon.usage import Note
from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, identified

if TYPE_CHECKING:
    from torchwatt.carbon.plan import Plan

OLD_YEARS = 5  # older data gives the note FACTOR_OLD; grids change by half in that time
_HOW = "give one that holds, or say --allow-expired (allow_expired=True): its row then says so"


def in_force(plan: Plan, start: datetime, end: datetime) -> Plan:
    """Return the plan with the factors that are valid from `start` to `end`.

    If `plan.allow_expired` is set, factors of other times stay, and their coverage notes state the time of the run.
    Factors of single hours are matched by hour elsewhere and not checked here.

    Raises:
        FactorError: A factor is not valid for the whole time.
    """

    def dated(factor: Factor) -> Factor:
        return _dated(factor, start, end, allow_expired=plan.allow_expired)

    return replace(
        plan,
        location=tuple(_grid(grid, start, end, plan) for grid in plan.location),
        market=tuple(_grid(grid, start, end, plan) for grid in plan.market),
        pue=None if plan.pue is None else dated(plan.pue),
        wue=None if plan.wue is None else dated(plan.wue),
        criteria={kind: dated(factor) for kind, factor in plan.criteria.items()},
        embodied=tuple(
            Embodied(
                item.device,
                dated(item.lifetime),
                dated(item.share),
                {kind: dated(total) for kind, total in item.totals.items()},
            )
            for item in plan.embodied
        ),
    )


def _grid(grid: Grid, start: datetime, end: datetime, plan: Plan) -> Grid:
    if grid.always is None:
        return grid
    return replace(grid, always=_dated(grid.always, start, end, allow_expired=plan.allow_expired))


def _dated(factor: Factor, start: datetime, end: datetime, *, allow_expired: bool) -> Factor:
    early = factor.valid_from is not None and start < factor.valid_from
    late = factor.valid_to is not None and end > factor.valid_to
    if not (early or late):
        return factor
    dates = f"{_day(factor.valid_from, 'its beginning')} to {_day(factor.valid_to, 'now')}"
    run = f"{start:%Y-%m-%dT%H:%MZ}" if start == end else f"{start:%Y-%m-%dT%H:%MZ} to {end:%Y-%m-%dT%H:%MZ}"
    if not allow_expired:
        state = "has expired" if late else "does not hold yet"
        raise FactorError(
            f"{factor.kind} of {factor.source_name} {state}: it is valid from {dates}, the run is of {run}: {_HOW}"
        )
    note = f"applied outside of its dates: valid from {dates}, the run is of {run} (allow_expired)"
    return identified(replace(factor, coverage_note="; ".join(filter(None, (factor.coverage_note, note)))))


def _day(instant: datetime | None, unknown: str) -> str:
    return unknown if instant is None else f"{instant:%Y-%m-%dT%H:%MZ}"


def year_notes(factors: tuple[Factor, ...], start: datetime) -> Iterator[Note]:
    """Yield a note for each yearly factor from a later year than the run, or from more than `OLD_YEARS` before it."""
    for factor in factors:
        year = factor.data_year
        if year is None or factor.temporal_resolution == "hour":
            continue
        subject = f"{factor.kind} of {factor.source_name} {factor.zone}".rstrip()
        if year > start.year:
            yield Note("warning", "FACTOR_YEAR", f"{subject} is data of {year}, the run is of {start.year}")
        elif start.year - year > OLD_YEARS:
            text = f"{subject} is data of {year}, {start.year - year} years before the run"
            yield Note("warning", "FACTOR_OLD", text)
