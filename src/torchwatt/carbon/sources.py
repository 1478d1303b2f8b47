"""Publisher, basis and licence of each table of grid factors (see docs/carbon.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
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
SOURCES: Mapping[str, Source] = {
    "world": Source(
        name="Our World in Data, from Ember",
        url="https://ourworldindata.org/grapher/carbon-intensity-electricity",
        licence="CC BY 4.0",
        basis="lifecycle",
        gas="CO2e",
        perspective="production",
        note="yearly mean of the country's own generation, imports left out",
    ),
    "usa": Source(
        name="EPA eGRID, total output emission rate",
        url="https://www.epa.gov/egrid/download-data",
        licence="public domain",
        basis="direct",
        gas="CO2e",
        perspective="production",
        note="what the state's power plants emit; nothing upstream, so a lower bound of the life cycle and "
        "not comparable with the life-cycle numbers of countries",
    ),
    "canada": Source(
        name="codecarbon's mix of fuels by province",
        url="https://github.com/mlco2/codecarbon",
        licence="not stated in the table",
        basis="combustion_only",
        gas="CO2",
        perspective="production",
        note="coal, oil and gas burned; hydro, nuclear, wind, sun and biomass count as 0, so a lower bound; "
        "not comparable with the life-cycle numbers of countries; the table states neither year nor source",
    ),
    "china": Source(
        name="MEE and NBS of China, Announcement 2025 No. 47, Table 3",
        url="https://www.mee.gov.cn/xxgk2018/xxgk/xxgk01/202512/t20251231_1139517.html",
        licence="not stated in the table",
        basis="direct",
        gas="CO2",
        perspective="consumption",
        note="CO2 only and nothing upstream, so a lower bound of CO2e and not comparable with the "
        "life-cycle numbers of countries; transfers between provinces are accounted for",
    ),
    "nordic": Source(
        name="ENTSO-E generation by bidding zone, via Khepri (Zenodo)",
        url="https://doi.org/10.5281/zenodo.22285397",
        licence="not stated in the table",
        basis="lifecycle",
        gas="CO2e",
        perspective="production",
        note="mean of the zone's own generation, imports left out",
    ),
}
