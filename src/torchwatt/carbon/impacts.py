"""Grams from joules: pure arithmetic, with the formula written beside the number."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.terms import Provenance, weakest
from torchwatt.core.units import J_PER_KWH


def impacts(
    energy_by_subject: Mapping[str, tuple[float, Provenance]],
    grid: Factor | None,
    pue: Factor | None = None,
) -> tuple[Impact, ...]:
    """Return the usage-phase GWP of each subject (`run`, `device:gpu:0`), in gCO2e; empty without a grid.

    Args:
        energy_by_subject: Joules inside the measured boundary and how they are known. PUE is applied here,
            never to the energy itself.
        grid: gCO2e/kWh.
        pue: Facility energy over IT energy; without it the grams are those of the measured parts only.

    Raises:
        FactorError: A factor of another kind, or an energy that is negative or not finite.
    """
    if grid is None:
        return ()
    _check(grid, "grid_gwp")
    if pue is not None:
        _check(pue, "pue")
    return tuple(_gwp(subject, *energy, grid, pue) for subject, energy in energy_by_subject.items())


def _check(factor: Factor, kind: str) -> None:
    if factor.kind != kind:
        raise FactorError(f"factor {factor.factor_id} is a {factor.kind!r}; a {kind!r} is needed here")


def _gwp(subject: str, energy_j: float, provenance: Provenance, grid: Factor, pue: Factor | None) -> Impact:
    if not isfinite(energy_j) or energy_j < 0:
        raise FactorError(f"{subject}: cannot price {energy_j!r} J")
    # In the order of the formula, so that evaluating the text gives the same last digit.
    facility_kwh = energy_j / J_PER_KWH if pue is None else energy_j / J_PER_KWH * pue.value
    factors = (grid,) if pue is None else (pue, grid)
    return Impact(
        subject=subject,
        criterion="gwp",
        phase="usage",
        value=facility_kwh * grid.value,
        unit="g{CO2e}",
        formula="energy_j/3.6e6*grid_gwp" if pue is None else "energy_j/3.6e6*pue*grid_gwp",
        factor_ids=tuple(factor.factor_id for factor in factors),
        provenance="derived",
        weakest_input=weakest(provenance, *(factor.provenance for factor in factors)),
        lo=None if grid.lo is None else facility_kwh * grid.lo,
        hi=None if grid.hi is None else facility_kwh * grid.hi,
    )
