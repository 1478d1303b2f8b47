"""Factors that the user declares: grid intensity, contract, PUE of the building, and embodied figures of devices.

Embodied impacts are M of the SCI (ISO/IEC 21031:2024), M = TE * (TiR / EL) * (RR / ToR): embodied total, times reserved
time over expected life, times the share of the device that was reserved. There are no defaults.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real

from torchwatt.carbon.impacts import GRAMS, PricedSubject, UncertainValue, evaluate_with_interval, quantity
from torchwatt.core.errors import ConfigError, FactorError
from torchwatt.core.factor import Factor, Impact, with_factor_id
from torchwatt.core.terms import domain_kind, weakest_provenance

GRID_UNIT = "g{CO2e}/kW.h"
BY_USER = "declared by the user"
PRICE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *([^\W\d_]{1,12}|[$€£¥₹₩])")
Ranged = float | Sequence[float]  # a number, or (value, lo, hi)


def declared_intensity(intensity_g_per_kwh: float, region: str | None) -> Factor:
    """Return the user's own grid intensity, gCO2e/kWh.

    Raises:
        ConfigError: The number is negative or not finite.
    """
    return with_factor_id(
        Factor(
            factor_id="",
            kind="grid_gwp",
            value=_checked_grams("intensity_g_per_kwh", intensity_g_per_kwh),
            unit=GRID_UNIT,
            provenance="declared",
            source_name=BY_USER,
            zone=(region or "").strip(),
            gas="CO2e",
            accounting_method="location",
            coverage_note="basis not stated: comparable with other runs only if theirs is the same",
        )
    )


def declared_market(market_g_per_kwh: float) -> Factor:
    """Return the factor of the user's contract, gCO2e/kWh, for the market-based total.

    Raises:
        ConfigError: The number is negative or not finite.
    """
    return with_factor_id(
        Factor(
            factor_id="",
            kind="contract_gwp",
            value=_checked_grams("market", market_g_per_kwh),
            unit=GRID_UNIT,
            provenance="declared",
            source_name=BY_USER,
            gas="CO2e",
            perspective="contract",
            accounting_method="market",
            coverage_note="instrument not stated: an auditor will ask for the contract or certificate",
        )
    )


def declared_price(price_per_kwh: str) -> Factor:
    """Return the price of a kilowatt-hour; the unit of the factor is `{EUR}/kW.h`.

    Args:
        price_per_kwh: A number and its currency, such as "0.32 EUR".

    Raises:
        ConfigError: It is not such a text.
    """
    match = PRICE.fullmatch(price_per_kwh.strip()) if isinstance(price_per_kwh, str) else None
    if match is None:
        raise ConfigError(f"price_per_kwh={price_per_kwh!r}: give a number and its currency, such as '0.32 EUR'")
    return with_factor_id(
        Factor(
            factor_id="",
            kind="price",
            value=float(match[1]),
            unit=f"{{{match[2]}}}/kW.h",
            provenance="declared",
            source_name=BY_USER,
            coverage_note="one price for the whole run; taxes and fixed charges as the user included them",
        )
    )


def _checked_grams(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value) or value < 0:
        raise ConfigError(f"{name}={value!r}: expected gCO2e/kWh, 0 or more, such as 56")
    return float(value)


def resolve_pue(pue: Ranged | None) -> Factor | None:
    """Return the declared power usage effectiveness (facility energy over IT energy); None if not given.

    Args:
        pue: The yearly mean of the site, or `(value, lo, hi)`.

    Raises:
        ConfigError: The value is below 1 or not finite: the energy of the building includes that of its computers.
    """
    if pue is None:
        return None
    value, lo, hi = _with_range(pue)
    if not isfinite(value) or value < 1 or (lo is not None and lo < 1):
        raise ConfigError(f"pue={pue!r}: facility energy over IT energy is at least 1; leave it out if unknown")
    return with_factor_id(
        Factor(
            factor_id="",
            kind="pue",
            value=value,
            unit="1",
            provenance="declared",
            source_name=BY_USER,
            lo=lo,
            hi=hi,
            coverage_note="yearly PUE of a whole site; this hall and hour may differ",
        )
    )


def _with_range(pue: Ranged) -> tuple[float, float | None, float | None]:
    if not isinstance(pue, Sequence):
        return float(pue), None, None
    numbers = [float(number) for number in pue]
    if len(numbers) != 3 or not all(map(isfinite, numbers)) or not numbers[1] <= numbers[0] <= numbers[2]:
        raise ConfigError(f"pue={pue!r}: give a number, or (value, lo, hi) with lo <= value <= hi")
    return numbers[0], numbers[1], numbers[2]


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
