"""Carbon factors and the impacts computed from them."""

from __future__ import annotations

from dataclasses import dataclass

from torchwatt.core.terms import Provenance


@dataclass(frozen=True, slots=True)
class Factor:
    """One number about the grid or the facility, with where it comes from.

    `kind` is `grid_gwp` (gCO2e/kWh) or `pue` (1). `basis` is lifecycle, direct, combustion_only or unknown.
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
    accounting_method: str = ""
    source_url: str = ""
    source_version: str = ""
    licence: str = ""
    lo: float | None = None
    hi: float | None = None
    coverage_note: str = ""


@dataclass(frozen=True, slots=True)
class Impact:
    """Grams of a subject (`run`, `device:gpu:0`), with the formula and the factors that made them."""

    subject: str
    criterion: str  # "gwp"
    phase: str  # "usage"
    value: float
    unit: str  # "g{CO2e}"
    formula: str
    factor_ids: tuple[str, ...]
    provenance: Provenance
    weakest_input: Provenance
    lo: float | None = None
    hi: float | None = None
