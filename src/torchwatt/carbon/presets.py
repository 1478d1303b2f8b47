"""Facilities whose operator publishes PUE, water and grid mix; each number with the page it comes from.

Scaleway's page changed under one and the same "validation" date, so two of its versions are kept: the later is the
value, and lo and hi span both. A preset is refused two years after the operator validated it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches

from torchwatt.carbon.declared import GRID_UNIT
from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, identified

STALE_AFTER = timedelta(days=731)
_PAGE = "https://github.com/scaleway/docs-content/blob/{}/pages/environmental-footprint/additional-content/{}"
_NAME = "calculation-values-reference.mdx"
_EARLIER, _LATER = "09c886594fba05c572e1129273dc201eeb10fd1b", "6b0e320cc1ab857f8e69af89392701943e684d76"
_VALIDATED = datetime(2025, 6, 9, tzinfo=UTC)
_RETRIEVED = datetime(2026, 11, 24, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Site:
    """One site as published: each number in the later and in the earlier version of the page; None is "NA"."""

    zone: str
    pue: tuple[float, float]
    wue_l_per_kwh: tuple[float, float] | None
    mix_g_per_kwh: tuple[float, float]


_FRA, _NLD, _POL = (44.0, 56.0), (253.0, 268.0), (615.0, 661.0)
SITES: Mapping[str, Site] = {
    "scaleway/fr-par-1": Site("FRA", (1.45, 1.46), (0.009, 0.014), _FRA),
    "scaleway/fr-par-2": Site("FRA", (1.16, 1.16), (0.25, 0.214), _FRA),
    "scaleway/fr-par-3": Site("FRA", (1.44, 1.44), (0.001, 0.004), _FRA),
    "scaleway/nl-ams-1": Site("NLD", (1.38, 1.38), (0.85, 0.85), _NLD),
    "scaleway/nl-ams-2": Site("NLD", (1.4, 1.4), None, _NLD),
    "scaleway/nl-ams-3": Site("NLD", (1.2, 1.2), None, _NLD),
    "scaleway/pl-waw-1": Site("POL", (1.50, 1.51), None, _POL),
    "scaleway/pl-waw-2": Site("POL", (1.24, 1.32), None, _POL),
    "scaleway/pl-waw-3": Site("POL", (1.5, 1.43), None, _POL),
}


def facility(name: str, at: datetime, *, allow_expired: bool = False) -> tuple[Factor, ...]:
    """Return the factors of a facility: grid_gwp, pue, and wue where it is published.

    Args:
        name: Such as `scaleway/fr-par-2`.
        at: When the run was; a preset does not speak for years after it was validated.
        allow_expired: Let it, and say so in its rows.

    Raises:
        FactorError: There is no such preset, or it is too old.
    """
    site = SITES.get(name.strip().casefold())
    if site is None:
        near = get_close_matches(name, SITES, n=3) or list(SITES)
        raise FactorError(f"no facility {name!r}; did you mean {', '.join(near)}? Else give pue= and factors= yourself")
    stale = at > _VALIDATED + STALE_AFTER
    if stale and not allow_expired:
        raise FactorError(
            f"facility {name!r} was validated on {_VALIDATED:%Y-%m-%d}, more than two years before the run: "
            "give current numbers by pue= and factors=, or say --allow-expired (allow_expired=True)"
        )
    factors = [
        _factor(
            "grid_gwp", GRID_UNIT, site.mix_g_per_kwh, site, "of the country, as the operator uses it; it names Ember"
        ),
        _factor("pue", "1", site.pue, site, "yearly PUE of the site; this hall and hour may differ"),
    ]
    if site.wue_l_per_kwh is not None:
        factors.append(_factor("wue", "L/kW.h", site.wue_l_per_kwh, site, "water of the site per kWh of IT"))
    if not stale:
        return tuple(factors)
    note = f"validated more than two years before the run of {at:%Y-%m-%d} (allow_expired)"
    return tuple(identified(replace(f, coverage_note=f"{f.coverage_note}; {note}")) for f in factors)


def _factor(kind: str, unit: str, versions: tuple[float, float], site: Site, note: str) -> Factor:
    same = versions[0] == versions[1]
    spread = "" if same else "; lo and hi are two versions of the page under one validation date"
    grid = kind == "grid_gwp"
    return identified(
        Factor(
            factor_id="",
            kind=kind,
            value=versions[0],
            unit=unit,
            provenance="sourced",
            source_name="Scaleway, calculation reference values",
            zone=site.zone,
            gas="CO2e" if grid else "",
            perspective="production" if grid else "",
            accounting_method="location" if grid else "",
            source_url=_PAGE.format(_LATER, _NAME),
            source_version=f"{_LATER[:12]} and {_EARLIER[:12]}, validated {_VALIDATED:%Y-%m-%d}",
            lo=None if same else min(versions),
            hi=None if same else max(versions),
            coverage_note=note + spread,
            retrieved_at=_RETRIEVED,
            zone_system="iso3166-1",
            temporal_resolution="year",
        )
    )
