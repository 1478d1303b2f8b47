"""Reads the data tables of codecarbon; its tracker is never imported, and nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torchwatt.carbon.iso import CANADA
from torchwatt.core.errors import FactorError
from torchwatt.core.extras import install_command

G_PER_KWH_FROM_LB_PER_MWH = 0.45359237  # the pound is exactly 0.45359237 kg

# codecarbon.core.emissions._region_energy_mix_to_emissions_rate, kgCO2/kWh of fuel burned. Hydro, nuclear,
# wind, sun and biomass are not in its sum, so they count as 0 and the result is a lower bound.
_CANADA_G_PER_KWH = {"coal": 995.725971, "petroleum": 816.6885263, "naturalGas": 743.8415916}


@dataclass(frozen=True, slots=True)
class Place:
    """One row of a table: a country or a part of one, with its published intensity in g/kWh."""

    zone: str  # "FRA", "USA/california"
    table: str  # world, usa, canada, china, nordic
    names: tuple[str, ...]  # in lower case; a user may write any of them after the slash
    label: str
    g_per_kwh: float
    year: int | None
    note: str = ""


def source_version() -> str:
    """Return the version of codecarbon whose tables are read."""
    try:
        return f"codecarbon {version('codecarbon')}"
    except PackageNotFoundError as error:
        raise FactorError(
            f"grid factors come from codecarbon's tables and it is not installed: {install_command('codecarbon')}, "
            "or give your own number with intensity_g_per_kwh="
        ) from error


def _read(method: str, *args: str) -> Mapping[str, Any]:
    """Call one method of codecarbon's DataSource; its import takes a second, so it is imported here."""
    having = source_version()
    from codecarbon.input import DataSource

    untyped: Any = DataSource
    getter: Callable[..., Mapping[str, Any]] | None = getattr(untyped(), method, None)
    if getter is None:
        raise FactorError(f"{having} has no {method}(): install codecarbon>=3.3")
    return getter(*args)


def _number(row: Mapping[str, Any], key: str, zone: str) -> float:
    value = row.get(key)
    if not isinstance(value, int | float) or value < 0:
        raise FactorError(f"{source_version()} has no usable {key!r} for {zone}: {value!r}; give intensity_g_per_kwh=")
    return float(value)


def world() -> dict[str, Place]:
    """Return the countries by ISO 3166-1 alpha-3 code."""
    rows = _read("get_global_energy_mix_data")
    return {code: _country(code, row) for code, row in rows.items()}


def _country(code: str, row: Mapping[str, Any]) -> Place:
    value = _number(row, "carbon_intensity", code)
    name = str(row.get("country_name", code))
    note = "published as 0, which no grid's life cycle is: a lower bound" if value == 0 else ""
    return Place(code, "world", (code.lower(), name.lower()), name, value, row.get("year"), note)


def usa() -> tuple[Place, ...]:
    """Return the states of the USA, from EPA eGRID (lb/MWh)."""
    rows = _read("get_country_emissions_data", "usa")
    year = rows.get("_source", {}).get("year")
    return tuple(
        Place(
            f"USA/{name}",
            "usa",
            (name, row["regionCode"].lower()),
            name.title(),
            _number(row, "emissions", f"USA/{name}") * G_PER_KWH_FROM_LB_PER_MWH,
            year,
        )
        for name, row in rows.items()
        if not name.startswith("_") and name != "usa"  # the national mean has another basis than the table of the world
    )


def canada() -> tuple[Place, ...]:
    """Return the provinces of Canada, computed from their mix of fuels as codecarbon does."""
    letters = {name: code for code, name in CANADA.items()}
    rows = _read("get_country_energy_mix_data", "can")
    return tuple(
        Place(f"CAN/{name}", "canada", _known(name, letters.get(name)), name.title(), _burned(name, mix), None)
        for name, mix in rows.items()
    )


def _known(*names: str | None) -> tuple[str, ...]:
    return tuple(name.lower() for name in names if name)


def _burned(name: str, mix: Mapping[str, Any]) -> float:
    total = _number(mix, "total", f"CAN/{name}")
    burned = (_number(mix, fuel, f"CAN/{name}") * g for fuel, g in _CANADA_G_PER_KWH.items())
    return sum(burned) / total


def china() -> tuple[Place, ...]:
    """Return the provinces of China, from the ministry's table (CO2 only)."""
    rows = _read("get_china_provincial_emissions_data")["data"]
    return tuple(
        Place(
            f"CHN/{row['description'].lower()}",
            "china",
            (*row["names"], code.removeprefix("CN-").lower()),
            row["description"],
            _number(row, "emission_factor", code),
            row.get("year"),
        )
        for code, row in rows.items()
    )


def nordic() -> tuple[Place, ...]:
    """Return the bidding zones of Sweden, Norway and Finland."""
    country = {"SE": "SWE", "NO": "NOR", "FI": "FIN"}
    rows = _read("get_nordic_country_energy_mix_data")["data"]
    return tuple(
        Place(
            f"{country[zone[:2]]}/{zone}",
            "nordic",
            (zone.lower(),),
            row["description"],
            _number(row, "emission_factor", zone),
            row.get("year"),
            _nordic_note(row),
        )
        for zone, row in rows.items()
    )


def _nordic_note(row: Mapping[str, Any]) -> str:
    coverage = row.get("coverage")
    if coverage is None:
        return "the table gives no method for this zone"
    return f"covers {coverage}; the uncovered part counts as 0, so this is a lower bound"


REGIONAL: Mapping[str, Callable[[], tuple[Place, ...]]] = {
    "USA": usa,
    "CAN": canada,
    "CHN": china,
    "SWE": nordic,
    "NOR": nordic,
    "FIN": nordic,
}
