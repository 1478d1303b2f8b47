"""Impacts of the energy of a run (greenhouse gases, water, metals, primary energy), each with its formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import fsum

from torchwatt.carbon.arithmetic import Quantity, combine
from torchwatt.carbon.usage import Subject
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.hours import hour_start
from torchwatt.core.terms import Provenance, weakest
from torchwatt.core.units import J_PER_KWH

GRAMS = "g{CO2e}"
# Kind of the grid factor -> (criterion, unit).
CRITERIA: Mapping[str, tuple[str, str]] = {
    "grid_gwp": ("gwp", GRAMS),
    "contract_gwp": ("gwp", GRAMS),
    "residual_mix": ("gwp", GRAMS),
    "grid_adpe": ("adpe", "kg{Sbeq}"),
    "grid_pe": ("pe", "MJ"),
}
Compute = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, slots=True)
class Site:
    """PUE and water use of the building; None if not stated."""

    pue: Factor | None = None
    wue: Factor | None = None


def energy(subject: Subject) -> Quantity:
    """Return the energy of a subject in joules, with its interval."""
    return Quantity(subject.energy_j, subject.lo_j, subject.hi_j)


def quantity(factor: Factor) -> Quantity:
    """Return the value of a factor, with its interval."""
    return Quantity(factor.value, factor.lo, factor.hi)


def weighted(factors: tuple[Factor, ...], subject: Subject) -> Quantity:
    """Return the mean of hourly factors, weighted by the subject's energy in each hour."""
    if len(factors) == 1:
        return quantity(factors[0])
    by_start = {factor.valid_from: factor for factor in factors}
    pairs = [(joules, by_start[hour_start(hour)]) for hour, joules in subject.hourly_j.items()]
    total_j = fsum(joules for joules, _ in pairs)
    if total_j <= 0:
        return Quantity(fsum(f.value for _, f in pairs) / len(pairs))
    los = [(joules, factor.lo) for joules, factor in pairs if factor.lo is not None]
    his = [(joules, factor.hi) for joules, factor in pairs if factor.hi is not None]
    ranged = len(los) == len(his) == len(pairs)
    return Quantity(
        fsum(joules * factor.value for joules, factor in pairs) / total_j,
        fsum(joules * lo for joules, lo in los) / total_j if ranged else None,
        fsum(joules * hi for joules, hi in his) / total_j if ranged else None,
    )


def usage_impact(subject: Subject, grid: tuple[Factor, ...], site: Site, method: str) -> Impact:
    """Return the impact of a subject's electricity. The PUE is applied here, the energy itself stays as metered.

    Args:
        subject: Its energy is that inside the measured boundary.
        grid: One factor, or one for each hour of the subject, all of one kind.
        site: Without a PUE the result is that of the metered devices only.
        method: location or market.
    """
    kind = grid[0].kind
    criterion, unit = CRITERIA[kind]
    inputs = {"energy_j": energy(subject), kind: weighted(grid, subject)}
    factors = grid
    if site.pue is None:
        return _impact(subject, (criterion, unit, method), f"energy_j/3.6e6*{kind}", _times(kind), inputs, factors)
    inputs["pue"] = quantity(site.pue)
    text = f"energy_j/3.6e6*pue*{kind}"
    return _impact(subject, (criterion, unit, method), text, _times("pue", kind), inputs, (site.pue, *factors))


def water_impact(subject: Subject, grid: Factor | None, site: Site) -> Impact | None:
    """Return the water use in litres, of the site and of generating its electricity; None if neither is stated."""
    if grid is None and site.wue is None:
        return None
    parts = [factor for factor in (site.wue, site.pue if grid is not None else None, grid) if factor is not None]
    inputs = {"energy_j": energy(subject)} | {factor.kind: quantity(factor) for factor in parts}
    electricity = "" if grid is None else "grid_wue" if site.pue is None else "pue*grid_wue"
    terms = [text for text in ("wue" if site.wue is not None else "", electricity) if text]

    def litres(at: Mapping[str, float]) -> float:
        own = at.get("wue", 0.0)
        return at["energy_j"] / J_PER_KWH * (own + at.get("pue", 1.0) * at.get("grid_wue", 0.0))

    text = f"energy_j/3.6e6*({'+'.join(terms)})"
    return _impact(subject, ("wcf", "L", "location"), text, litres, inputs, tuple(parts))


def _times(*names: str) -> Compute:
    """Return a product in the order of the formula, so that evaluating the formula's text gives the same digits."""

    def product(at: Mapping[str, float]) -> float:
        value = at["energy_j"] / J_PER_KWH
        for name in names:
            value *= at[name]
        return value

    return product


def _impact(  # one row of the table
    subject: Subject,
    table_key: tuple[str, str, str],
    formula: str,
    compute: Compute,
    inputs: Mapping[str, Quantity],
    factors: tuple[Factor, ...],
) -> Impact:
    result = combine(compute, inputs)
    criterion, unit, method = table_key
    return Impact(
        subject=subject.name,
        criterion=criterion,
        phase="usage",
        value=result.value,
        unit=unit,
        formula=formula,
        factor_ids=tuple(factor.factor_id for factor in factors),
        provenance="derived",
        weakest_input=weakest(subject.provenance, *(factor.provenance for factor in factors)),
        lo=result.lo,
        hi=result.hi,
        accounting_method=method,
        dominant_uncertainty=result.dominant,
    )


def added(usage: Impact, embodied: Impact) -> Impact:
    """Return the sum of the usage and the embodied impact, with the usage's accounting method."""
    result = combine(
        lambda at: at["usage"] + at["embodied"],
        {
            "usage": Quantity(usage.value, usage.lo, usage.hi),
            "embodied": Quantity(embodied.value, embodied.lo, embodied.hi),
        },
    )
    return Impact(
        subject=usage.subject,
        criterion=usage.criterion,
        phase="total",
        value=result.value,
        unit=usage.unit,
        formula=f"{usage.formula}+{embodied.formula}",
        factor_ids=tuple(dict.fromkeys((*usage.factor_ids, *embodied.factor_ids))),
        provenance="derived",
        weakest_input=weakest(usage.weakest_input, embodied.weakest_input),
        lo=result.lo,
        hi=result.hi,
        accounting_method=usage.accounting_method,
        dominant_uncertainty=_within(result.dominant, usage, embodied),
    )


def sci(usage: Impact, embodied: Impact, units: float, unit: str, unit_provenance: Provenance) -> Impact:
    """Return the Software Carbon Intensity, ((E * I) + M) / R (ISO/IEC 21031:2024), location-based.

    Args:
        usage: E * I, grams of the run's electricity; I is location-based, as the standard requires.
        embodied: M, grams of the share of the hardware; the standard requires it.
        units: R, the number of functional units.
        unit: The name of the functional unit.
        unit_provenance: The provenance of R.
    """
    total = combine(
        lambda at: (at["usage"] + at["embodied"]) / at["units"],
        {
            "usage": Quantity(usage.value, usage.lo, usage.hi),
            "embodied": Quantity(embodied.value, embodied.lo, embodied.hi),
            "units": Quantity(units, units, units),
        },
    )
    summed = added(usage, embodied)
    return Impact(
        subject="run",
        criterion="sci",
        phase="total",
        value=total.value,
        unit=f"{GRAMS}/{{{unit}}}",
        formula=f"({usage.formula}+{embodied.formula})/units",
        factor_ids=summed.factor_ids,
        provenance="derived",
        weakest_input=weakest(summed.weakest_input, unit_provenance),
        lo=total.lo,
        hi=total.hi,
        accounting_method="location",
        dominant_uncertainty=summed.dominant_uncertainty,
    )


def _within(dominant: str, usage: Impact, embodied: Impact) -> str:
    """Return the dominant input of the larger part of a sum, or the inputs of the parts that state no interval."""
    unstated = [part.dominant_uncertainty for part in (usage, embodied) if part.lo is None]
    return "; ".join(unstated) or (usage if dominant == "usage" else embodied).dominant_uncertainty
