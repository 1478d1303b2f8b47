"""Embodied figures of devices, as the user gives them (M of the SCI, ISO/IEC 21031:2024).

M = TE * (TiR / EL) * (RR / ToR): embodied total, times reserved time over expected life, times the share of the device
that was reserved. The user or a source states all of them; there are no defaults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torchwatt.carbon.impacts import GRAMS, PricedSubject, UncertainValue, evaluate_with_interval, quantity
from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.terms import domain_kind, weakest_provenance

S_PER_YEAR = 31_557_600  # UCUM's "a", the Julian year of 365.25 days
_KINDS = ("embodied_gwp", "embodied_adpe", "embodied_pe")


@dataclass(frozen=True, slots=True)
class Embodied:
    """Figures of one kind of device (`gpu`) or of one device (`gpu:0`).

    `totals` are by kind of factor, `lifetime` is in years, `share` is 0 to 1.
    """

    device: str
    lifetime: Factor
    share: Factor
    totals: Mapping[str, Factor] = field(default_factory=dict)


def group_embodied(lines: Iterable[tuple[str, Factor]]) -> tuple[Embodied, ...]:
    """Group (device, factor) pairs by device.

    Raises:
        FactorError: A total has no lifetime or no share, or a factor is given twice.
    """
    by_device: dict[str, dict[str, Factor]] = {}
    for device, factor in lines:
        if factor.kind not in {*_KINDS, "lifetime", "share"}:
            continue
        if not device:
            raise FactorError(f"{factor.kind}: the column `device` must name a device, such as gpu or gpu:0")
        if by_device.setdefault(device, {}).setdefault(factor.kind, factor) is not factor:
            raise FactorError(f"{device}: {factor.kind} is given twice")
    return tuple(_embodied_of(device, factors) for device, factors in sorted(by_device.items()))


def _embodied_of(device: str, factors: Mapping[str, Factor]) -> Embodied:
    totals = {kind: factors[kind] for kind in _KINDS if kind in factors}
    missing = [kind for kind in ("lifetime", "share") if kind not in factors]
    if not totals or missing:
        raise FactorError(
            f"{device}: embodied emissions need a total ({', '.join(_KINDS)}), a lifetime in years and the share of "
            f"the device that was reserved; missing: {', '.join(missing) or 'the total'}"
        )
    return Embodied(device, factors["lifetime"], factors["share"], totals)


def for_device(devices: Iterable[Embodied], device_id: str) -> Embodied | None:
    """Return the figures of a device, else those of its kind, else None."""
    by_name = {item.device: item for item in devices}
    return by_name.get(device_id) or by_name.get(domain_kind(device_id))


# Criterion, unit of the result, and the factor between the total's unit and that one.
_CRITERIA: Mapping[str, tuple[str, str, float]] = {
    "embodied_gwp": ("gwp", GRAMS, 1e3),
    "embodied_adpe": ("adpe", "kg{Sbeq}", 1.0),
    "embodied_pe": ("pe", "MJ", 1.0),
}


def embodied_impacts(subject: PricedSubject, devices: Sequence[Embodied], duration_s: float) -> list[Impact]:
    """Return the share of the devices' embodied impacts that a run of `duration_s` uses up, one row per criterion.

    Devices with equal figures are one term with a count. Different figures get numbered names (`lifetime_2`), in the
    order of `factor_ids`.
    """
    return [
        _embodied_impact(subject, kind, [device for device in devices if kind in device.totals], duration_s)
        for kind in _CRITERIA
        if any(kind in device.totals for device in devices)
    ]


def _embodied_impact(subject: PricedSubject, kind: str, devices: Sequence[Embodied], duration_s: float) -> Impact:
    counted = Counter((device.totals[kind], device.share, device.lifetime) for device in devices)
    factors = tuple(dict.fromkeys(factor for group in counted for factor in group))
    names = _names(factors)
    criterion, unit, scale = _CRITERIA[kind]
    terms = [(n, names[total], names[share], names[life]) for (total, share, life), n in counted.items()]

    def compute(at: Mapping[str, float]) -> float:
        parts = (n * at[total] * at[share] / at[life] for n, total, share, life in terms)
        return at["duration_s"] / S_PER_YEAR * scale * sum(parts)

    inputs = {"duration_s": UncertainValue(duration_s, duration_s, duration_s)}
    result = evaluate_with_interval(compute, inputs | {name: quantity(factor) for factor, name in names.items()})
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
        weakest_input=weakest_provenance(subject.provenance, *(factor.provenance for factor in factors)),
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
