"""Finds the factor of the region that the user named, or raises an error that suggests other names."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from torchwatt.carbon.declared_factors import GRID_UNIT, declared_intensity
from torchwatt.carbon.grid_tables import ALPHA3_OF_ALPHA2, REGIONAL, SOURCES, GridPlace, source_version, world
from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, with_factor_id

HOW_TO_GET_GRAMS = (
    "No carbon: no grid was named. Give region= (such as 'FRA' or 'USA/california') "
    "or your own number with intensity_g_per_kwh=."
)
_FIX = (
    "Give a country ('FRA', 'France'), a part of one ('USA/california', 'CAN-QC', 'SWE/SE3'), a cloud's region "
    "('eu-west-3'), or your own number with intensity_g_per_kwh=."
)
_NAMES_TABLE = "region_names.csv"
_CLOUD_ZONE = re.compile(r"(\d)-?[a-f]$")
_CLOUD_CUTOFF = 0.8  # of the similarity of names of cloud regions, which are alike anyway
_LETTERS_PER_EDIT = 3  # a name that differs in more is another word: a suggestion of it would mislead
_CHINA_SUFFIX = re.compile(r"\s+(autonomous region|municipality|province|sheng|shi|zizhiqu)$")


def resolve_intensity(region: str | None, *, intensity_g_per_kwh: float | None = None) -> Factor | None:
    """Return the grid intensity in gCO2e/kWh with its source; None without arguments.

    Args:
        region: A country (`FRA`, `FR`, `France`), a part of one (`USA/california`, `USA-CA`) or a region of a cloud
            (`eu-west-3`, `us-central1`). It is never taken from the network address and never replaced by a mean of
            the world.
        intensity_g_per_kwh: The user's own number, with provenance `declared`; it is used instead of the tables.

    Raises:
        FactorError: The region is in no table; the message names similar ones.
        ConfigError: The declared number is negative or not finite.
    """
    if intensity_g_per_kwh is not None:
        return declared_intensity(intensity_g_per_kwh, region)
    if region is None:
        return None
    return _factor(find_place(region))


def place_of(zone: str) -> tuple[str, str] | None:
    """Return the country (ISO 3166-1 alpha-3) and its part, empty if the tables do not have it; None if it is no place.

    For zones of Electricity Maps (`DE`, `US-CAL-CISO`) and bidding zones (`SE3`, `DE-LU`) the part is empty.
    """
    text = zone.strip().upper()
    head, separator, _ = text.replace("-", "/").partition("/")
    head = {"UK": "GB", "EL": "GR"}.get(head, head)
    if head in ALPHA3_OF_ALPHA2 and not (separator == "/" and "/" in text):
        return ALPHA3_OF_ALPHA2[head], ""
    if head in ALPHA3_OF_ALPHA2.values() and not separator:
        return head, ""
    try:
        country, _, part = find_place(zone).zone.partition("/")
    except FactorError:
        code = ALPHA3_OF_ALPHA2.get(head, head)
        return (code, "") if code in ALPHA3_OF_ALPHA2.values() else None
    return country, part


def find_place(region: str) -> GridPlace:
    """Return the place that a region names.

    Raises:
        FactorError: The region is in no table, or names both a country and a state.
    """
    countries = world()
    text = _fold(region)
    text = _fold(_zone_of_name(text) or text)
    country_code = _country(text, countries)
    if country_code is not None:
        _refuse_ambiguous(text, region)
        return countries[country_code]
    head, part = _split_region(text)
    code = _country(head, countries)
    if code is None or not part:
        raise FactorError(f"no grid factor for region={region!r}{_suggestions(text, countries)} {_FIX}")
    return _part(code, part, region, countries)


@cache
def _region_names() -> dict[str, str]:
    """Return zones by the names of cloud regions and by other English names of countries; see `region_names.csv`."""
    table = files("torchwatt.carbon").joinpath(_NAMES_TABLE).read_text(encoding="utf-8")
    return {row["name"]: row["zone"] for row in csv.DictReader(table.splitlines())}


def _zone_of_name(text: str) -> str | None:
    """Return the zone of a cloud region (`eu-west-3`), of one of its zones (`eu-west-3a`), or of another name."""
    return _region_names().get(text) or _region_names().get(_CLOUD_ZONE.sub(r"\1", text))


def _part(code: str, part: str, region: str, countries: dict[str, GridPlace]) -> GridPlace:
    if code not in REGIONAL:
        raise FactorError(
            f"no grid factor for region={region!r}: the tables have parts of {', '.join(REGIONAL)} only. "
            f"Use {code!r} for the mean of {countries[code].label}, or intensity_g_per_kwh=."
        )
    places = [place for place in REGIONAL[code]() if place.zone.startswith(f"{code}/")]
    part_name = _CHINA_SUFFIX.sub("", part) if code == "CHN" else part
    for place in places:
        if part_name in place.names:
            return place
    near = _misspelt(part_name, (name for place in places for name in place.names))[:3]
    zones = dict.fromkeys(place.zone for name in near for place in places if name in place.names)
    suggestions = ", ".join((*_near_names(_fold(region)), *zones)) or ", ".join(place.zone for place in places)
    raise FactorError(
        f"no grid factor for region={region!r}: did you mean {suggestions}? "
        f"{code!r} alone gives the mean of {countries[code].label}."
    )


def _fold(text: str) -> str:
    """Return the text in lower case, without accents and double spaces: `Québec` becomes `quebec`."""
    plain = unicodedata.normalize("NFKD", text)
    return " ".join("".join(c for c in plain if not unicodedata.combining(c)).casefold().split())


def _split_region(text: str) -> tuple[str, str]:
    head, _, part = text.partition("/") if "/" in text else text.partition("-")
    return head.strip(), part.strip().replace("_", " ")


def _country(text: str, countries: dict[str, GridPlace]) -> str | None:
    code = ALPHA3_OF_ALPHA2.get(text.upper(), text.upper())
    if code in countries:
        return code
    return next((c for c, place in countries.items() if text in place.names), None)


def _refuse_ambiguous(text: str, region: str) -> None:
    """Refuse a country that has the name of a state of the USA, such as Georgia."""
    if len(text) > 3:
        twins = [p.zone for p in REGIONAL["USA"]() if text in p.names]
        if twins:
            country = _country(text, world())
            raise FactorError(f"region={region!r} is a country ({country}) and a state ({', '.join(twins)}): say which")


def _near_names(text: str) -> list[str]:
    near = get_close_matches(text, _region_names(), n=3, cutoff=_CLOUD_CUTOFF)
    return [f"{name} ({_region_names()[name]})" for name in near]


def _suggestions(text: str, countries: dict[str, GridPlace]) -> str:
    """Return similar names of countries and their parts, for an error message."""
    places = list(countries.values())
    for table in dict.fromkeys(REGIONAL.values()):
        places.extend(table())
    by_name = {name: place for place in reversed(places) for name in place.names if len(name) > 2}
    places_near = [by_name[name] for name in _misspelt(text, by_name)[:4]]
    places_near += [p for p in countries.values() if _initials(p.label) == text]  # "UK", "DRC"
    places_near += [by_name[text]] if text in by_name else []
    labels = dict.fromkeys(_near_names(text))
    labels |= dict.fromkeys(f"{place.zone} ({place.label})" for place in places_near)
    return f": did you mean {', '.join(labels)}?" if labels else "."


def _misspelt(text: str, names: Iterable[str]) -> list[str]:
    """Return the names that a text may mean, the nearest first: few edits away, or with a word that begins with it."""
    max_edits, edits = len(text) // _LETTERS_PER_EDIT, dict[str, int]()
    for name in names:
        begins = any(word == text or (max_edits and word.startswith(text)) for word in name.split())
        if begins or abs(len(name) - len(text)) <= max_edits:
            edits[name] = 0 if begins else _edits(text, name)
    return sorted((name for name, n in edits.items() if n <= max_edits), key=lambda name: edits[name])


def _edits(text: str, name: str) -> int:
    """Return how many letters are inserted, left out, replaced or swapped with their neighbour."""
    two_rows_up, row_up = list[int](), list(range(len(name) + 1))
    for i, text_letter in enumerate(text, 1):
        row = [i]
        for j, name_letter in enumerate(name, 1):
            row.append(min(row_up[j] + 1, row[-1] + 1, row_up[j - 1] + (text_letter != name_letter)))
            if i > 1 and j > 1 and (text_letter, text[i - 2]) == (name[j - 2], name_letter):
                row[-1] = min(row[-1], two_rows_up[j - 2] + 1)
        two_rows_up, row_up = row_up, row
    return row_up[-1]


def _initials(label: str) -> str:
    return "".join(word[0] for word in label.split() if word[0].isupper()).lower()


def _factor(place: GridPlace) -> Factor:
    source = SOURCES[place.table]
    return with_factor_id(
        Factor(
            factor_id="",
            kind="grid_gwp",
            value=place.g_per_kwh,
            unit=GRID_UNIT,
            provenance="sourced",
            source_name=source.name,
            zone=place.zone,
            data_year=place.year,
            basis=source.basis,
            gas=source.gas,
            perspective=source.perspective,
            accounting_method="location",
            source_url=source.url,
            source_version=source_version(),
            licence=source.licence,
            coverage_note="; ".join(note for note in (source.note, place.note) if note),
        )
    )
