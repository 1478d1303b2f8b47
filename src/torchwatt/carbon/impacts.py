"""Grams, and what else a kilowatt-hour costs, with the formula written beside the number."""

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
# Criterion and unit by the grid's kind.
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
    """The building around the machine; None where nobody said."""

    pue: Factor | None = None
    wue: Factor | None = None


def energy(subject: Subject) -> Quantity:
    """Return the joules of a subject with their interval."""
    return Quantity(subject.energy_j, subject.lo_j, subject.hi_j)


def quantity(factor: Factor) -> Quantity:
    """Return a factor's number with its interval."""
    return Quantity(factor.value, factor.lo, factor.hi)


def weighted(factors: tuple[Factor, ...], subject: Subject) -> Quantity:
    """Return the mean of hourly factors, weighted with the subject's joules of each hour."""
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
    """Return what the subject's joules cost at the grid, PUE applied here and never to the energy itself.

    Args:
        subject: Joules inside the measured boundary.
        grid: One factor, or those of all hours of the subject, all of one kind.
        site: Its PUE; without it the result is that of the measured parts only.
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
    """Return litres: the site's own water and that of making its electricity, as far as each is known."""
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
    """Multiply in the order of the formula, so that evaluating the text gives the same last digit."""

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
    """Return usage and embodied together, under the usage's accounting method."""
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
        usage: E * I, grams of the run's electricity; I is location-based, as the standard asks.
        embodied: M, grams of the hardware's share; the standard asks for it, so there is no score without.
        units: R, how many functional units.
        unit: Their name.
        unit_provenance: How R is known.
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
    """Name the input of a sum's larger part, or those parts' inputs that state no range."""
    unstated = [part.dominant_uncertainty for part in (usage, embodied) if part.lo is None]
    return "; ".join(unstated) or (usage if dominant == "usage" else embodied).dominant_uncertainty
