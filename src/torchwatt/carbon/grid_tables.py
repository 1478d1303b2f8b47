"""Reads the data tables of codecarbon; its tracker is never imported, and nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torchwatt.core.errors import FactorError, install_command

# Two letters, then three; no dependency provides them.
_PAIRS = """
    AEARE AFAFG AGATG ALALB AMARM AOAGO ARARG ASASM ATAUT AUAUS AWABW AZAZE BABIH BBBRB BDBGD BEBEL
    BFBFA BGBGR BHBHR BIBDI BJBEN BMBMU BNBRN BOBOL BRBRA BSBHS BTBTN BWBWA BYBLR BZBLZ CACAN CDCOD
    CFCAF CGCOG CHCHE CICIV CKCOK CLCHL CMCMR CNCHN COCOL CRCRI CUCUB CVCPV CYCYP CZCZE DEDEU DJDJI
    DKDNK DMDMA DODOM DZDZA ECECU EEEST EGEGY EHESH ERERI ESESP ETETH FIFIN FJFJI FKFLK FOFRO FRFRA
    GAGAB GBGBR GDGRD GEGEO GFGUF GHGHA GIGIB GLGRL GMGMB GNGIN GPGLP GQGNQ GRGRC GTGTM GUGUM GWGNB
    GYGUY HKHKG HNHND HRHRV HTHTI HUHUN IDIDN IEIRL ILISR ININD IQIRQ IRIRN ISISL ITITA JMJAM JOJOR
    JPJPN KEKEN KGKGZ KHKHM KIKIR KMCOM KNKNA KPPRK KRKOR KWKWT KYCYM KZKAZ LALAO LBLBN LCLCA LKLKA
    LRLBR LSLSO LTLTU LULUX LVLVA LYLBY MAMAR MDMDA MEMNE MGMDG MKMKD MLMLI MMMMR MNMNG MOMAC MQMTQ
    MRMRT MSMSR MTMLT MUMUS MVMDV MWMWI MXMEX MYMYS MZMOZ NANAM NCNCL NENER NGNGA NINIC NLNLD NONOR
    NPNPL NRNRU NZNZL OMOMN PAPAN PEPER PFPYF PGPNG PHPHL PKPAK PLPOL PMSPM PRPRI PSPSE PTPRT PYPRY
    QAQAT REREU ROROU RSSRB RURUS RWRWA SASAU SBSLB SCSYC SDSDN SESWE SGSGP SHSHN SISVN SKSVK SLSLE
    SNSEN SOSOM SRSUR SSSSD STSTP SVSLV SYSYR SZSWZ TCTCA TDTCD TGTGO THTHA TJTJK TLTLS TMTKM TNTUN
    TOTON TRTUR TTTTO TWTWN TZTZA UAUKR UGUGA USUSA UYURY UZUZB VCVCT VEVEN VGVGB VIVIR VNVNM VUVUT
    WSWSM YEYEM ZAZAF ZMZMB ZWZWE
"""

ALPHA3_OF_ALPHA2 = {pair[:2]: pair[2:] for pair in _PAIRS.split()}

# ISO 3166-2:CA; codecarbon's table of Canada has names only.
CANADA = {
    "AB": "alberta",
    "BC": "british columbia",
    "MB": "manitoba",
    "NB": "new brunswick",
    "NL": "newfoundland and labrador",
    "NS": "nova scotia",
    "NT": "northwest territories",
    "NU": "nunavut",
    "ON": "ontario",
    "PE": "prince edward island",
    "QC": "quebec",
    "SK": "saskatchewan",
    "YT": "yukon",
}


G_PER_KWH_FROM_LB_PER_MWH = 0.45359237  # the pound is exactly 0.45359237 kg

# codecarbon.core.emissions._region_energy_mix_to_emissions_rate, kgCO2/kWh of fuel burned. Hydro, nuclear,
# wind, sun and biomass are not in its sum, so they count as 0 and the result is a lower bound.
_CANADA_G_PER_KWH = {"coal": 995.725971, "petroleum": 816.6885263, "naturalGas": 743.8415916}


@dataclass(frozen=True, slots=True)
class GridPlace:
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


def world() -> dict[str, GridPlace]:
    """Return the countries by ISO 3166-1 alpha-3 code."""
    rows = _read("get_global_energy_mix_data")
    return {code: _country(code, row) for code, row in rows.items()}


def _country(code: str, row: Mapping[str, Any]) -> GridPlace:
    value = _number(row, "carbon_intensity", code)
    name = str(row.get("country_name", code))
    note = "published as 0, which no grid's life cycle is: a lower bound" if value == 0 else ""
    return GridPlace(code, "world", (code.lower(), name.lower()), name, value, row.get("year"), note)


def usa() -> tuple[GridPlace, ...]:
    """Return the states of the USA, from EPA eGRID (lb/MWh)."""
    rows = _read("get_country_emissions_data", "usa")
    year = rows.get("_source", {}).get("year")
    return tuple(
        GridPlace(
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


def canada() -> tuple[GridPlace, ...]:
    """Return the provinces of Canada, computed from their mix of fuels as codecarbon does."""
    letters = {name: code for code, name in CANADA.items()}
    rows = _read("get_country_energy_mix_data", "can")
    return tuple(
        GridPlace(
            f"CAN/{name}",
            "canada",
            _lower_names(name, letters.get(name)),
            name.title(),
            _combustion_g_per_kwh(name, mix),
            None,
        )
        for name, mix in rows.items()
    )


def _lower_names(*names: str | None) -> tuple[str, ...]:
    return tuple(name.lower() for name in names if name)


def _combustion_g_per_kwh(name: str, mix: Mapping[str, Any]) -> float:
    total = _number(mix, "total", f"CAN/{name}")
    burned = (_number(mix, fuel, f"CAN/{name}") * g for fuel, g in _CANADA_G_PER_KWH.items())
    return sum(burned) / total


def china() -> tuple[GridPlace, ...]:
    """Return the provinces of China, from the ministry's table (CO2 only)."""
    rows = _read("get_china_provincial_emissions_data")["data"]
    return tuple(
        GridPlace(
            f"CHN/{row['description'].lower()}",
            "china",
            (*row["names"], code.removeprefix("CN-").lower()),
            row["description"],
            _number(row, "emission_factor", code),
            row.get("year"),
        )
        for code, row in rows.items()
    )


def nordic() -> tuple[GridPlace, ...]:
    """Return the bidding zones of Sweden, Norway and Finland."""
    country = {"SE": "SWE", "NO": "NOR", "FI": "FIN"}
    rows = _read("get_nordic_country_energy_mix_data")["data"]
    return tuple(
        GridPlace(
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


REGIONAL: Mapping[str, Callable[[], tuple[GridPlace, ...]]] = {
    "USA": usa,
    "CAN": canada,
    "CHN": china,
    "SWE": nordic,
    "NOR": nordic,
    "FIN": nordic,
}


@dataclass(frozen=True, slots=True)
class TableSource:
    """Texts that the factors of one table have in common."""

    name: str
    url: str
    licence: str
    basis: str
    gas: str
    perspective: str
    note: str


# Regional numbers have another basis than national ones, and each note states it: California (direct) appears cleaner
# than the USA (life-cycle) partly because its table leaves upstream emissions out.
SOURCES: Mapping[str, TableSource] = {
    "world": TableSource(
        name="Our World in Data, from Ember",
        url="https://ourworldindata.org/grapher/carbon-intensity-electricity",
        licence="CC BY 4.0",
        basis="lifecycle",
        gas="CO2e",
        perspective="production",
        note="yearly mean of the country's own generation, imports left out",
    ),
    "usa": TableSource(
        name="EPA eGRID, total output emission rate",
        url="https://www.epa.gov/egrid/download-data",
        licence="public domain",
        basis="direct",
        gas="CO2e",
        perspective="production",
        note="what the state's power plants emit; nothing upstream, so a lower bound of the life cycle and "
        "not comparable with the life-cycle numbers of countries",
    ),
    "canada": TableSource(
        name="codecarbon's mix of fuels by province",
        url="https://github.com/mlco2/codecarbon",
        licence="not stated in the table",
        basis="combustion_only",
        gas="CO2",
        perspective="production",
        note="coal, oil and gas burned; hydro, nuclear, wind, sun and biomass count as 0, so a lower bound; "
        "not comparable with the life-cycle numbers of countries; the table states neither year nor source",
    ),
    "china": TableSource(
        name="MEE and NBS of China, Announcement 2025 No. 47, Table 3",
        url="https://www.mee.gov.cn/xxgk2018/xxgk/xxgk01/202512/t20251231_1139517.html",
        licence="not stated in the table",
        basis="direct",
        gas="CO2",
        perspective="consumption",
        note="CO2 only and nothing upstream, so a lower bound of CO2e and not comparable with the "
        "life-cycle numbers of countries; transfers between provinces are accounted for",
    ),
    "nordic": TableSource(
        name="ENTSO-E generation by bidding zone, via Khepri (Zenodo)",
        url="https://doi.org/10.5281/zenodo.22285397",
        licence="not stated in the table",
        basis="lifecycle",
        gas="CO2e",
        perspective="production",
        note="mean of the zone's own generation, imports left out",
    ),
}
