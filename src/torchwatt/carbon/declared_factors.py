"""Factors that the user declares: the grid intensity, the contract and the PUE of the building."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from numbers import Real

from torchwatt.core.errors import ConfigError
from torchwatt.core.factor import Factor, with_factor_id

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
