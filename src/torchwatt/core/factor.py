"""Carbon factors and the impacts computed from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from torchwatt.core.terms import Provenance


@dataclass(frozen=True, slots=True)
class Factor:
    """One number about the grid, the facility or the hardware, with its source.

    `kind` is also its name in a formula: `grid_gwp` (g{CO2e}/kW.h), `pue` (1), `embodied_gwp` (kg{CO2e}), ...
    `basis` is lifecycle, direct, upstream, combustion_only or unknown. `lo` and `hi` are a 90 % interval or the
    spread of two sources; None is unknown, never "exact".
    """

    factor_id: str
    kind: str
    value: float
    unit: str
    provenance: Provenance
    source_name: str
    zone: str = ""
    data_year: int | None = None
    basis: str = "unknown"
    gas: str = ""
    perspective: str = ""
    accounting_method: str = ""  # location or market
    source_url: str = ""
    source_version: str = ""
    licence: str = ""
    lo: float | None = None
    hi: float | None = None
    coverage_note: str = ""
    u: float | None = None
    distribution: str = ""
    gwp_set: str = ""
    instrument: str = ""  # the contract behind a market-based number
    includes_td_losses: str = ""
    zone_system: str = ""
    temporal_resolution: str = ""  # hour, month, year or static
    valid_from: datetime | None = None
    valid_to: datetime | None = None  # not included
    retrieved_at: datetime | None = None
    source_sha256: str = ""
    is_estimated: bool | None = None  # whether the source declares its number an estimate
    estimation_method: str = ""
    fallback_from: str = ""  # the requested zone, if this one replaces it


@dataclass(frozen=True, slots=True)
class Impact:
    """One computed number of a subject (`run`, `device:gpu:0`), with its formula and factors."""

    subject: str
    criterion: str  # gwp, adpe, pe, wcf, sci
    phase: str  # usage, embodied or total
    value: float
    unit: str  # "g{CO2e}"
    formula: str
    factor_ids: tuple[str, ...]
    provenance: Provenance
    weakest_input: Provenance
    lo: float | None = None
    hi: float | None = None
    accounting_method: str = "location"  # location, market or na; totals of two methods must not be added
    scenario: str = "as_run"
    ghg_scope: str = ""
    u: float | None = None
    per_unit_value: float | None = None
    dominant_uncertainty: str = ""


def content_id(kind: str, content: Mapping[str, Any]) -> str:
    """Return the id of a factor: `kind` and twelve digits of the SHA-256 of its non-empty cells.

    Args:
        kind: The factor's kind.
        content: Its fields by name; `factor_id` and empty fields do not count, so that new fields change no id.
    """
    cells = {k: _canonical_value(v) for k, v in content.items() if k != "factor_id" and v is not None and v != ""}
    return f"{kind}-{sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:12]}"


def with_factor_id(factor: Factor) -> Factor:
    """Return the factor with the id of its content (`content_id`)."""
    return replace(factor, factor_id=content_id(factor.kind, asdict(factor)))


def _canonical_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
