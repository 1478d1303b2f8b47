"""Applies a plan of factors to a run: impacts, the factors that they use, and notes for the reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torchwatt.carbon.declared_factors import embodied_impacts, for_device
from torchwatt.carbon.ecologits import PE_FLAG
from torchwatt.carbon.grid_series import GridSeries, name_hours
from torchwatt.carbon.impacts import (
    CRITERIA,
    BuildingFactors,
    PricedSubject,
    PricingNote,
    RunUsage,
    add_impacts,
    sci,
    usage_impact,
    water_impact,
)
from torchwatt.carbon.pricing_plan import PricingPlan, plan_in_force, year_notes
from torchwatt.core.factor import Factor, Impact, with_factor_id
from torchwatt.core.units import hour_of

_DEVICE = "device:"


@dataclass(frozen=True, slots=True)
class PricedImpacts:
    """Impacts, the factors in their formulas, and notes for the reader."""

    factors: tuple[Factor, ...] = ()
    impacts: tuple[Impact, ...] = ()
    notes: tuple[PricingNote, ...] = ()


@dataclass(frozen=True, slots=True)
class _ChosenGrid:
    """The first candidate that covers the run; `fallback_from` lists those before it and why they were skipped."""

    grid: GridSeries
    fallback_from: str = ""

    def factors(self, hours: Sequence[int]) -> tuple[Factor, ...]:
        factors = self.grid.factors(hours)
        if not self.fallback_from:
            return factors
        return tuple(with_factor_id(replace(factor, fallback_from=self.fallback_from)) for factor in factors)


def price_run(usage: RunUsage, plan: PricingPlan, *, scenario: str = "as_run") -> PricedImpacts:
    """Compute each impact that the plan has factors for; subjects without metered energy have none.

    Location- and market-based totals stand side by side and are never added. Embodied impacts, totals and the SCI score
    exist only if embodied figures of the hardware are given.

    Raises:
        FactorError: A factor is not valid at the time of the run.
    """
    plan = plan_in_force(plan, *usage.time)
    notes: list[PricingNote] = []
    location = _choose(plan.location, usage, notes)
    market = _choose(plan.market, usage, notes)
    site = BuildingFactors(plan.pue, plan.wue)
    impacts: list[Impact] = []
    used: list[Factor] = []
    for chosen, method in ((location, "location"), (market, "market")):
        if chosen is not None:
            grid = chosen.factors(usage.hours)
            used += grid
            impacts += [usage_impact(s, _hours_with_energy(grid, s), site, method) for s in usage.subjects]
    impacts += _other_impacts(usage, plan, site)
    impacts += _embodied_impacts(usage, plan, notes)
    impacts += _totals(usage, impacts)
    _note_primary_energy(plan, notes)
    everything = (*used, *_factors_without_grid(plan))
    needed = {name for impact in impacts for name in impact.factor_ids}
    used_factors = tuple(factor for factor in dict.fromkeys(everything) if factor.factor_id in needed)
    notes += _fallback_notes(used_factors, notes)
    notes += year_notes(tuple(factor for factor in used_factors if factor.kind in CRITERIA), usage.time[0])
    return PricedImpacts(
        used_factors, tuple(_finish_impact(impact, usage, scenario) for impact in impacts), tuple(notes)
    )


def _fallback_notes(factors: Sequence[Factor], notes: Sequence[PricingNote]) -> Iterator[PricingNote]:
    """Yield a note for each factor with a `fallback_from`, which a user's file may set, unless there is one already."""
    has_note = any(note.code == "FACTOR_FALLBACK" for note in notes)
    for factor in factors:
        if factor.fallback_from and not has_note:
            text = f"{factor.kind} of {factor.source_name} stands for {factor.fallback_from}"
            yield PricingNote("warning", "FACTOR_FALLBACK", text)


def _hours_with_energy(grid: tuple[Factor, ...], subject: PricedSubject) -> tuple[Factor, ...]:
    """Return the factors of the hours in which the subject has energy."""
    if len(grid) == 1:
        return grid
    return tuple(f for f in grid if f.valid_from is not None and hour_of(f.valid_from) in subject.hourly_j)


def _choose(candidates: tuple[GridSeries, ...], usage: RunUsage, notes: list[PricingNote]) -> _ChosenGrid | None:
    skipped: list[str] = []
    for grid in candidates:
        gaps = grid.find_missing(usage.hours)
        if grid.by_hour and not all(subject.hourly_j for subject in usage.subjects):
            skipped.append(f"{grid.label} (the run has no energy by hour)")
        elif gaps:
            skipped.append(f"{grid.label} ({len(gaps)} of {len(usage.hours)} hours missing: {name_hours(gaps)})")
        else:
            if skipped:
                why = f"used {grid.label} ({grid.level}) instead of {'; '.join(skipped)}"
                notes.append(PricingNote("warning", "FACTOR_FALLBACK", why))
            return _ChosenGrid(grid, "; ".join(skipped))
    if skipped:
        notes.append(
            PricingNote("error", "FACTOR_MISSING", f"no grams: {'; '.join(skipped)}, and nothing else was given")
        )
    return None


def _other_impacts(usage: RunUsage, plan: PricingPlan, site: BuildingFactors) -> Iterator[Impact]:
    for subject in usage.subjects:
        for kind in ("grid_adpe", "grid_pe"):
            if kind in plan.criteria:
                yield usage_impact(subject, (plan.criteria[kind],), site, "location")
        if plan.price is not None:
            yield usage_impact(subject, (plan.price,), site, "na")
        water = water_impact(subject, plan.criteria.get("grid_wue"), site)
        if water is not None:
            yield water


def _embodied_impacts(usage: RunUsage, plan: PricingPlan, notes: list[PricingNote]) -> Iterator[Impact]:
    if not plan.embodied:
        return
    ids = [subject.name.removeprefix(_DEVICE) for subject in usage.subjects if subject.name.startswith(_DEVICE)]
    figures_by_device = {
        device_id: item for device_id in ids if (item := for_device(plan.embodied, device_id)) is not None
    }
    if unknown := [device_id for device_id in ids if device_id not in figures_by_device]:
        text = f"no embodied figures for {', '.join(unknown)}: embodied and total leave them out"
        notes.append(PricingNote("warning", "EMBODIED_PARTIAL", text))
    if not figures_by_device:
        return
    for subject in usage.subjects:
        figures = figures_by_device.get(subject.name.removeprefix(_DEVICE))
        used = list(figures_by_device.values()) if subject.name == "run" else [figures] if figures is not None else []
        yield from embodied_impacts(subject, used, usage.duration_s)


def _totals(usage: RunUsage, impacts: Sequence[Impact]) -> Iterator[Impact]:
    embodied_by_subject = {(i.subject, i.criterion): i for i in impacts if i.phase == "embodied"}
    for impact in [i for i in impacts if i.phase == "usage"]:
        embodied = embodied_by_subject.get((impact.subject, impact.criterion))
        if embodied is None:
            continue
        yield add_impacts(impact, embodied)
        is_score = (impact.subject, impact.criterion, impact.accounting_method) == ("run", "gwp", "location")
        if is_score and usage.units > 0:
            yield sci(impact, embodied, usage.units, usage.unit, usage.unit_provenance)


def _note_primary_energy(plan: PricingPlan, notes: list[PricingNote]) -> None:
    primary = plan.criteria.get("grid_pe")
    if primary is not None and PE_FLAG in primary.coverage_note:
        text = f"{primary.zone}: {primary.value:.3g} MJ/kWh of primary energy is below the 3.6 of the kWh itself"
        notes.append(PricingNote("warning", "PE_BELOW_3_6", text))


def _factors_without_grid(plan: PricingPlan) -> Iterator[Factor]:
    yield from (factor for factor in (plan.pue, plan.wue, plan.price, *plan.criteria.values()) if factor is not None)
    for item in plan.embodied:
        yield from (*item.totals.values(), item.share, item.lifetime)


def _finish_impact(impact: Impact, usage: RunUsage, scenario: str) -> Impact:
    per_unit = impact.subject == "run" and impact.criterion != "sci" and usage.units > 0
    return replace(impact, scenario=scenario, per_unit_value=impact.value / usage.units if per_unit else None)
