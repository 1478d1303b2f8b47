"""Impacts of the energy of a run (greenhouse gases, water, metals, primary energy), each with its formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import fsum, hypot, isfinite

from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.terms import Provenance, weakest_provenance
from torchwatt.core.units import J_PER_KWH, hour_start


@dataclass(frozen=True, slots=True)
class UncertainValue:
    """A number and its 90 % interval; its limits are optional."""

    value: float
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True, slots=True)
class FormulaResult:
    """The value of a formula and its 90 % interval.

    `dominant` names the input with the largest effect on the interval, or the inputs that state no interval.
    """

    value: float
    lo: float | None
    hi: float | None
    dominant: str


def evaluate_with_interval(
    compute: Callable[[Mapping[str, float]], float], inputs: Mapping[str, UncertainValue]
) -> FormulaResult:
    """Evaluate a formula and propagate the intervals of its inputs.

    Each input is set to the ends of its interval while the others keep their values. The deviations downward and
    upward are added in quadrature, as for independent inputs (JCGM 100:2008, 5.1, with differences instead of
    derivatives). If any input states no interval, the result has none: omitting a term would claim that it is exact.

    Raises:
        FactorError: An input or the result is negative or not finite.
    """
    at = {name: quantity.value for name, quantity in inputs.items()}
    if bad := [f"{name}={value!r}" for name, value in at.items() if not isfinite(value) or value < 0]:
        raise FactorError(f"cannot compute with {', '.join(bad)}")
    value = compute(at)
    unstated = [name for name, quantity in inputs.items() if quantity.lo is None or quantity.hi is None]
    if unstated:
        return FormulaResult(value, None, None, f"not stated for {', '.join(unstated)}")
    moved = {
        name: (compute(at | {name: quantity.lo or 0.0}) - value, compute(at | {name: quantity.hi or 0.0}) - value)
        for name, quantity in inputs.items()
    }
    low = hypot(*(min(down, up, 0.0) for down, up in moved.values()))
    high = hypot(*(max(down, up, 0.0) for down, up in moved.values()))
    dominant = max(moved, key=lambda name: max(map(abs, moved[name])))
    return FormulaResult(value, max(value - low, 0.0), value + high, dominant)


@dataclass(frozen=True, slots=True)
class PricedSubject:
    """The run (`run`) or one device (`device:gpu:0`), with its energy.

    `lo_j` and `hi_j` are the 90 % interval of `energy_j`, None if the meter states none. `hourly_j` maps hours since
    1970 (UTC) to energies with the sum `energy_j`; empty if only the sum is known.
    """

    name: str
    energy_j: float
    provenance: Provenance
    lo_j: float | None = None
    hi_j: float | None = None
    hourly_j: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunUsage:
    """The subjects of one run, and its time: `hours` are all hours since 1970 (UTC) in which it ran."""

    subjects: tuple[PricedSubject, ...]
    duration_s: float
    hours: tuple[int, ...]
    unit: str = "run"
    units: float = 1.0
    unit_provenance: Provenance = "assumed"
    start: datetime | None = None  # None: only `hours` are known
    end: datetime | None = None

    @property
    def time(self) -> tuple[datetime, datetime]:
        """Return start and end; if unknown, those of the first and the last hour."""
        return self.start or hour_start(min(self.hours)), self.end or hour_start(max(self.hours) + 1)

    def subject(self, name: str) -> PricedSubject | None:
        """Return a subject by name."""
        return next((s for s in self.subjects if s.name == name), None)


@dataclass(frozen=True, slots=True)
class PricingNote:
    """A note for the reader of the impacts; `code` is a stable identifier."""

    severity: str  # info, warning or error
    code: str
    message: str


GRAMS = "g{CO2e}"
# Kind of the grid factor -> (criterion, unit).
CRITERIA: Mapping[str, tuple[str, str]] = {
    "grid_gwp": ("gwp", GRAMS),
    "contract_gwp": ("gwp", GRAMS),
    "residual_mix": ("gwp", GRAMS),
    "grid_adpe": ("adpe", "kg{Sbeq}"),
    "grid_pe": ("pe", "MJ"),
}
PRICE_KIND = "price"  # its criterion is `cost`, in the currency of its unit `{EUR}/kW.h`
Compute = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, slots=True)
class BuildingFactors:
    """PUE and water use of the building; None if not stated."""

    pue: Factor | None = None
    wue: Factor | None = None


def energy(subject: PricedSubject) -> UncertainValue:
    """Return the energy of a subject in joules, with its interval."""
    return UncertainValue(subject.energy_j, subject.lo_j, subject.hi_j)


def quantity(factor: Factor) -> UncertainValue:
    """Return the value of a factor, with its interval."""
    return UncertainValue(factor.value, factor.lo, factor.hi)


def weighted_mean(factors: tuple[Factor, ...], subject: PricedSubject) -> UncertainValue:
    """Return the mean of hourly factors, weighted by the subject's energy in each hour."""
    if len(factors) == 1:
        return quantity(factors[0])
    by_start = {factor.valid_from: factor for factor in factors}
    pairs = [(joules, by_start[hour_start(hour)]) for hour, joules in subject.hourly_j.items()]
    total_j = fsum(joules for joules, _ in pairs)
    if total_j <= 0:
        return UncertainValue(fsum(f.value for _, f in pairs) / len(pairs))
    los = [(joules, factor.lo) for joules, factor in pairs if factor.lo is not None]
    his = [(joules, factor.hi) for joules, factor in pairs if factor.hi is not None]
    ranged = len(los) == len(his) == len(pairs)
    return UncertainValue(
        fsum(joules * factor.value for joules, factor in pairs) / total_j,
        fsum(joules * lo for joules, lo in los) / total_j if ranged else None,
        fsum(joules * hi for joules, hi in his) / total_j if ranged else None,
    )


def usage_impact(subject: PricedSubject, grid: tuple[Factor, ...], site: BuildingFactors, method: str) -> Impact:
    """Return the impact, or the cost, of a subject's electricity.

    The PUE is applied here, the energy itself stays as metered.

    Args:
        subject: Its energy is that inside the measured boundary.
        grid: One factor, or one for each hour of the subject, all of one kind.
        site: Without a PUE the result is that of the metered devices only.
        method: location, market or (of a cost) na.
    """
    kind = grid[0].kind
    criterion, unit = ("cost", grid[0].unit.partition("/")[0]) if kind == PRICE_KIND else CRITERIA[kind]
    inputs = {"energy_j": energy(subject), kind: weighted_mean(grid, subject)}
    factors = grid
    if site.pue is None:
        return _impact(subject, (criterion, unit, method), f"energy_j/3.6e6*{kind}", _product_of(kind), inputs, factors)
    inputs["pue"] = quantity(site.pue)
    text = f"energy_j/3.6e6*pue*{kind}"
    return _impact(subject, (criterion, unit, method), text, _product_of("pue", kind), inputs, (site.pue, *factors))


def water_impact(subject: PricedSubject, grid: Factor | None, site: BuildingFactors) -> Impact | None:
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


def _product_of(*names: str) -> Compute:
    """Return a product in the order of the formula, so that evaluating the formula's text gives the same digits."""

    def product(at: Mapping[str, float]) -> float:
        value = at["energy_j"] / J_PER_KWH
        for name in names:
            value *= at[name]
        return value

    return product


def _impact(  # one row of the table
    subject: PricedSubject,
    table_key: tuple[str, str, str],
    formula: str,
    compute: Compute,
    inputs: Mapping[str, UncertainValue],
    factors: tuple[Factor, ...],
) -> Impact:
    result = evaluate_with_interval(compute, inputs)
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
        weakest_input=weakest_provenance(subject.provenance, *(factor.provenance for factor in factors)),
        lo=result.lo,
        hi=result.hi,
        accounting_method=method,
        dominant_uncertainty=result.dominant,
    )


def add_impacts(usage: Impact, embodied: Impact) -> Impact:
    """Return the sum of the usage and the embodied impact, with the usage's accounting method."""
    result = evaluate_with_interval(
        lambda at: at["usage"] + at["embodied"],
        {
            "usage": UncertainValue(usage.value, usage.lo, usage.hi),
            "embodied": UncertainValue(embodied.value, embodied.lo, embodied.hi),
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
        weakest_input=weakest_provenance(usage.weakest_input, embodied.weakest_input),
        lo=result.lo,
        hi=result.hi,
        accounting_method=usage.accounting_method,
        dominant_uncertainty=_dominant_input(result.dominant, usage, embodied),
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
    total = evaluate_with_interval(
        lambda at: (at["usage"] + at["embodied"]) / at["units"],
        {
            "usage": UncertainValue(usage.value, usage.lo, usage.hi),
            "embodied": UncertainValue(embodied.value, embodied.lo, embodied.hi),
            "units": UncertainValue(units, units, units),
        },
    )
    summed = add_impacts(usage, embodied)
    return Impact(
        subject="run",
        criterion="sci",
        phase="total",
        value=total.value,
        unit=f"{GRAMS}/{{{unit}}}",
        formula=f"({usage.formula}+{embodied.formula})/units",
        factor_ids=summed.factor_ids,
        provenance="derived",
        weakest_input=weakest_provenance(summed.weakest_input, unit_provenance),
        lo=total.lo,
        hi=total.hi,
        accounting_method="location",
        dominant_uncertainty=summed.dominant_uncertainty,
    )


def _dominant_input(dominant: str, usage: Impact, embodied: Impact) -> str:
    """Return the dominant input of the larger part of a sum, or the inputs of the parts that state no interval."""
    unstated = [part.dominant_uncertainty for part in (usage, embodied) if part.lo is None]
    return "; ".join(unstated) or (usage if dominant == "usage" else embodied).dominant_uncertainty
