"""Facilities whose operator publishes PUE, water and grid mix, each number with its source.

The table is `facilities.csv` beside this file. A user adds facilities with a file of the same columns, named by the
environment variable TORCHWATT_FACILITIES; a facility in it replaces one of the same name in the package. The columns
are those of a file of factors (`factor_files`), `facility`, and `validated_at`: when its operator last confirmed the
numbers. Two years later they are refused.

Scaleway's page changed under one validation date, so two of its versions are kept: the later one is the value, and lo
and hi are the range of both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path

from torchwatt.carbon.factor_files import read_rows, utc_time
from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, with_factor_id
from torchwatt.disk.path_safety import read_user_path

OWN_FILE = "TORCHWATT_FACILITIES"  # environment variable
KINDS = ("grid_gwp", "pue", "wue")
STALE_AFTER = timedelta(days=731)
_TABLE = "facilities.csv"
_MAX_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Site:
    """The factors of one facility, one of each kind; `validated_at` None: its numbers do not grow stale."""

    factors: tuple[Factor, ...]
    validated_at: datetime | None = None


def facility(name: str, at: datetime, *, allow_expired: bool = False) -> tuple[Factor, ...]:
    """Return the factors of a facility: grid_gwp, pue and wue, as far as they are published.

    Args:
        name: Such as `scaleway/fr-par-2`.
        at: When the run was.
        allow_expired: Return numbers that were validated more than two years before the run, too; their coverage notes
            state it.

    Raises:
        FactorError: The facility is unknown, its numbers are too old, or the user's file cannot be read.
    """
    sites = facilities()
    site = sites.get(name.strip().casefold())
    if site is None:
        near = get_close_matches(name, sites, n=3) or list(sites)
        raise FactorError(f"no facility {name!r}; did you mean {', '.join(near)}? Else give pue= and factors= yourself")
    validated_at = site.validated_at
    if validated_at is None or at <= validated_at + STALE_AFTER:
        return site.factors
    if not allow_expired:
        raise FactorError(
            f"facility {name!r} was validated on {validated_at:%Y-%m-%d}, more than two years before the run: "
            "give current numbers by pue= and factors=, or say --allow-expired (allow_expired=True)"
        )
    note = f"validated more than two years before the run of {at:%Y-%m-%d} (allow_expired)"
    return tuple(
        with_factor_id(replace(factor, coverage_note="; ".join(filter(None, (factor.coverage_note, note)))))
        for factor in site.factors
    )


def facilities() -> Mapping[str, Site]:
    """Return the facilities of the package and of the user's file by name, in lower case.

    Raises:
        FactorError: The user's file cannot be read, or a row of it is impossible.
    """
    named = os.environ.get(OWN_FILE)
    if not named:
        return _packaged_sites()
    try:
        text = read_user_path(Path(named), _MAX_BYTES).decode()
    except OSError as error:
        raise FactorError(f"{OWN_FILE}={named!r}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FactorError(f"{OWN_FILE}={named!r}: cannot read it: {error}") from error
    return {**_packaged_sites(), **_sites(Path(named), text)}


@cache
def _packaged_sites() -> Mapping[str, Site]:
    """Return the facilities of the package; their source is the operator's page, so no hash of our table is kept."""
    text = (files("torchwatt.carbon") / _TABLE).read_text(encoding="utf-8")
    sites = _sites(Path(_TABLE), text)
    return {
        name: replace(site, factors=tuple(with_factor_id(replace(factor, source_sha256="")) for factor in site.factors))
        for name, site in sites.items()
    }


def _sites(path: Path, text: str) -> dict[str, Site]:
    sites: dict[str, Site] = {}
    for where, name, factor, validated_at in _rows(path, text):
        site = sites.setdefault(name, Site((), validated_at))
        if factor.kind in {earlier.kind for earlier in site.factors}:
            raise FactorError(f"{where}: {factor.kind} is given twice for {name}")
        if any(earlier.zone != factor.zone for earlier in site.factors):
            raise FactorError(f"{where}: a facility is in one zone, found {factor.zone!r} and {site.factors[0].zone!r}")
        if validated_at != site.validated_at:
            raise FactorError(f"{where}: {name} has two values of validated_at")
        sites[name] = replace(site, factors=(*site.factors, factor))
    return sites


def _rows(path: Path, text: str) -> Iterator[tuple[str, str, Factor, datetime | None]]:
    for where, cells, factor in read_rows(path, text, ("facility", "validated_at"), ("facility",)):
        if factor.kind not in KINDS:
            raise FactorError(f"{where}: a facility has {', '.join(KINDS)}, found {factor.kind}")
        if factor.accounting_method == "market":
            raise FactorError(f"{where}: the grid of a facility is location-based; give a contract by market=")
        try:
            validated_at = utc_time(cells["validated_at"]) if "validated_at" in cells else None
        except ValueError as error:
            raise FactorError(f"{where}, column validated_at: {error}") from error
        yield where, cells["facility"].strip().casefold(), factor, validated_at
