"""Numbers that the user declares: their own grid intensity, the PUE of their building."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from hashlib import sha256
from math import isfinite

from torchwatt.core.errors import ConfigError
from torchwatt.core.factor import Factor

GRID_UNIT = "g{CO2e}/kW.h"


def with_id(factor: Factor) -> Factor:
    """Name a factor by its content: the same number from the same source has the same id everywhere."""
    content = asdict(factor) | {"factor_id": ""}
    digest = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return replace(factor, factor_id=f"{factor.kind}-{digest[:12]}")


def declared_intensity(intensity_g_per_kwh: float, region: str | None) -> Factor:
    """Return the user's own grid intensity, gCO2e/kWh.

    Raises:
        ConfigError: The number is negative or not finite.
    """
    if not isfinite(intensity_g_per_kwh) or intensity_g_per_kwh < 0:
        raise ConfigError(f"intensity_g_per_kwh={intensity_g_per_kwh!r}: expected gCO2e/kWh, 0 or more, such as 56")
    factor = Factor(
        factor_id="",
        kind="grid_gwp",
        value=float(intensity_g_per_kwh),
        unit=GRID_UNIT,
        provenance="declared",
        source_name="declared by the user",
        zone=(region or "").strip(),
        gas="CO2e",
        coverage_note="basis not stated: comparable with other runs only if theirs is the same",
    )
    return with_id(factor)


def resolve_pue(pue: float | None) -> Factor | None:
    """Return the declared power usage effectiveness (facility energy over IT energy), None if not given.

    Raises:
        ConfigError: Below 1, or not finite: a building cannot use less than what is inside.
    """
    if pue is None:
        return None
    if not isfinite(pue) or pue < 1:
        raise ConfigError(f"pue={pue!r}: facility energy over IT energy is at least 1; leave it out if unknown")
    return with_id(
        Factor(
            factor_id="",
            kind="pue",
            value=float(pue),
            unit="1",
            provenance="declared",
            source_name="declared by the user",
            coverage_note="yearly PUE of a whole site; this hall and hour may differ",
        )
    )
