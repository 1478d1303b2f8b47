"""Embodied impacts: the share of the manufacture of the devices that a run uses up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torchwatt.carbon.arithmetic import Quantity, combine
from torchwatt.carbon.embodied import S_PER_YEAR, Embodied
from torchwatt.carbon.impacts import GRAMS, quantity
from torchwatt.carbon.usage import Subject
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.terms import weakest

# Criterion, unit of the result, and the factor between the total's unit and that one.
_CRITERIA: Mapping[str, tuple[str, str, float]] = {
    "embodied_gwp": ("gwp", GRAMS, 1e3),
    "embodied_adpe": ("adpe", "kg{Sbeq}", 1.0),
    "embodied_pe": ("pe", "MJ", 1.0),
}


def embodied_impacts(subject: Subject, devices: Sequence[Embodied], duration_s: float) -> list[Impact]:
    """Return the share of the devices' embodied impacts that a run of `duration_s` uses up, one row per criterion.

    Devices with equal figures are one term with a count. Different figures get numbered names (`lifetime_2`), in the
    order of `factor_ids`.
    """
    return [
        _one(subject, kind, [device for device in devices if kind in device.totals], duration_s)
        for kind in _CRITERIA
        if any(kind in device.totals for device in devices)
    ]


def _one(subject: Subject, kind: str, devices: Sequence[Embodied], duration_s: float) -> Impact:
    counted = Counter((device.totals[kind], device.share, device.lifetime) for device in devices)
    factors = tuple(dict.fromkeys(factor for group in counted for factor in group))
    names = _names(factors)
    criterion, unit, scale = _CRITERIA[kind]
    terms = [(n, names[total], names[share], names[life]) for (total, share, life), n in counted.items()]

    def compute(at: Mapping[str, float]) -> float:
        parts = (n * at[total] * at[share] / at[life] for n, total, share, life in terms)
        return at["duration_s"] / S_PER_YEAR * scale * sum(parts)

    inputs = {"duration_s": Quantity(duration_s, duration_s, duration_s)}
    result = combine(compute, inputs | {name: quantity(factor) for factor, name in names.items()})
    text = "+".join(f"{f'{n}*' if n > 1 else ''}{total}*{share}/{life}" for n, total, share, life in terms)
    return Impact(
        subject=subject.name,
        criterion=criterion,
        phase="embodied",
        value=result.value,
        unit=unit,
        formula=f"duration_s/{S_PER_YEAR}*{scale:g}*({text})",
        factor_ids=tuple(factor.factor_id for factor in factors),
        provenance="derived",
        weakest_input=weakest(subject.provenance, *(factor.provenance for factor in factors)),
        lo=result.lo,
        hi=result.hi,
        accounting_method="na",
        dominant_uncertainty=result.dominant,
    )


def _names(factors: Sequence[Factor]) -> dict[Factor, str]:
    """Return the name of each factor in a formula: its kind, with a number if several factors have that kind."""
    kinds = Counter(factor.kind for factor in factors)
    counts: Counter[str] = Counter()
    names: dict[Factor, str] = {}
    for factor in factors:
        counts[factor.kind] += 1
        names[factor] = factor.kind if kinds[factor.kind] == 1 else f"{factor.kind}_{counts[factor.kind]}"
    return names
