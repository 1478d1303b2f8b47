"""Reads the electricity mixes of the optional package `ecologits`: a second source, and more criteria than carbon.

`ecologits.electricity_mix_repository.electricity_mixes` has one row per country: GWP (kgCO2e/kWh), ADPe (kgSbeq/kWh),
primary energy (MJ/kWh) and water (L/kWh), without year or source in the data (its documentation names ADEME, OWID and
WRI). Its estimator and its patches of other packages are not used.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from torchwatt.core.factor import Factor, with_factor_id

MJ_PER_KWH = 3.6
_NAME = "EcoLogits"
_URL = "https://github.com/mlco2/ecologits"
_UNITS = {"grid_adpe": "kg{Sbeq}/kW.h", "grid_pe": "MJ/kW.h", "grid_wue": "L/kW.h"}
PE_FLAG = (
    "PE_BELOW_3_6: below the 3.6 MJ in a kWh, which no total primary energy can be; likely its fossil part only. "
    "Published so, and kept as published"
)


@cache
def installed_version() -> str:
    """Return the version of ecologits; empty if it is not installed."""
    try:
        return version("ecologits") if find_spec("ecologits") is not None else ""
    except PackageNotFoundError:
        return ""


def _mix(zone: str) -> Any:
    if not installed_version():
        return None
    from ecologits.electricity_mix_repository import electricity_mixes

    return electricity_mixes.find_electricity_mix(zone)


def with_second_opinion(factor: Factor) -> Factor:
    """Return a country's life-cycle intensity with the range of two sources as `lo` and `hi`.

    Other factors, and those of countries without a second source, are returned unchanged.
    """
    mix = _mix(factor.zone) if factor.basis == "lifecycle" and factor.kind == "grid_gwp" else None
    if mix is None:
        return factor
    second_g_per_kwh = mix.gwp * 1000  # published in kg
    note = f"lo and hi are two sources: {_NAME} {installed_version()} has {second_g_per_kwh:.4g} g/kWh"
    return with_factor_id(
        replace(
            factor,
            lo=min(factor.value, second_g_per_kwh),
            hi=max(factor.value, second_g_per_kwh),
            distribution="uniform",
            coverage_note="; ".join(text for text in (factor.coverage_note, note) if text),
        )
    )


def other_criteria(zone: str) -> tuple[Factor, ...]:
    """Return abiotic depletion, primary energy and water use per kWh of a country; empty if unknown."""
    mix = _mix(zone)
    if mix is None:
        return ()
    values = {"grid_adpe": mix.adpe, "grid_pe": mix.pe, "grid_wue": mix.wue}
    warned = "; ".join(str(getattr(w, "code", w)) for w in mix.warnings)
    return tuple(_factor(kind, float(value), zone, warned) for kind, value in values.items())


def _factor(kind: str, value: float, zone: str, warned: str) -> Factor:
    notes = ["the table states neither year nor source"]
    if kind == "grid_pe" and value < MJ_PER_KWH:
        notes.append(PE_FLAG)
    if warned:
        notes.append(f"its own warnings: {warned}")
    return with_factor_id(
        Factor(
            factor_id="",
            kind=kind,
            value=value,
            unit=_UNITS[kind],
            provenance="sourced",
            source_name=_NAME,
            zone=zone,
            basis="unknown",
            accounting_method="location",
            source_url=_URL,
            source_version=f"ecologits {installed_version()}",
            licence="MPL-2.0",
            coverage_note="; ".join(notes),
            zone_system="iso3166-1",
        )
    )
