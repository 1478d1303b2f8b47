"""Sums over runs, and the refusal to make them where they would mean nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum


@dataclass(frozen=True, slots=True)
class Counted:
    """What one run adds to a sum; None is unknown, never 0."""

    run_id: str
    boundary: str
    energy_j: float | None
    unit: str
    units: float
    location_g: float | None
    market_g: float | None
    basis: str = ""  # of the location-based grams: lifecycle and direct are not added either


@dataclass(frozen=True, slots=True)
class Total:
    """Sums of runs; `refused` says what was not added and why."""

    runs: int
    energy_j: float | None
    unit: str
    units: float | None
    location_g: float | None
    market_g: float | None
    refused: tuple[str, ...]

    @property
    def j_per_unit(self) -> float | None:
        """Return the sum of joules over the sum of units; never a mean of ratios."""
        return self.energy_j / self.units if self.energy_j is not None and self.units else None


def total(runs: Iterable[Counted]) -> Total:
    """Add up runs of one boundary, one unit and one accounting method; what is mixed stays empty and is named.

    Location- and market-based grams are two sums; one exists only where every run has that method.
    """
    found = list(runs)
    refused: list[str] = []
    energy_j = _energy(found, refused)
    units = {run.unit for run in found}
    if len(units) > 1:
        refused.append(f"units {', '.join(sorted(units))}: no sum of different things")
    bases = {run.basis for run in found if run.location_g is not None}
    if len(bases) > 1:
        refused.append(f"location-based grams: {', '.join(sorted(bases))} are different bases")
    return Total(
        runs=len(found),
        energy_j=energy_j,
        unit=next(iter(units)) if len(units) == 1 else "",
        units=fsum(run.units for run in found) if len(units) == 1 else None,
        location_g=None if energy_j is None or len(bases) > 1 else _grams(found, "location", refused),
        market_g=None if energy_j is None else _grams(found, "market", refused),
        refused=tuple(refused),
    )


def _energy(runs: list[Counted], refused: list[str]) -> float | None:
    boundaries = {run.boundary for run in runs}
    if len(boundaries) > 1:
        shown = " and ".join(sorted(boundary or "nothing metered" for boundary in boundaries))
        refused.append(f"energy: the runs have different boundaries ({shown})")
        return None
    known = [run.energy_j for run in runs if run.energy_j is not None]
    return fsum(known) if known and len(known) == len(runs) else None


def _grams(runs: list[Counted], method: str, refused: list[str]) -> float | None:
    known = [grams for run in runs if (grams := getattr(run, f"{method}_g")) is not None]
    if known and len(known) < len(runs):
        refused.append(f"{method}-based grams: only {len(known)} of {len(runs)} runs have them")
        return None
    return fsum(known) if known else None
