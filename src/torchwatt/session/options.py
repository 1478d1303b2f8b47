"""What the caller of `profile()` may ask for, checked before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from torchwatt.core.errors import ConfigError
from torchwatt.core.factor import Factor
from torchwatt.sensors import Feed

DEFAULT_BASELINE_S = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """Checked options of one session; `grid` and `pue` are resolved factors."""

    name: str = "run"
    grid: Factor | None = None
    pue: Factor | None = None
    layers: bool = True
    overhead_budget: float = 0.01
    baseline_s: float = DEFAULT_BASELINE_S
    csv: Path | None = None
    html: Path | None = None
    powercap_root: Path | None = None
    feed: Feed | None = None


def options(given: Mapping[str, Any]) -> Options:
    """Check what was given to `profile()`.

    Raises:
        ConfigError: An option is impossible; the message names it and the fix.
        FactorError: The region is in no table.
    """
    # codecarbon's tables take a second to load: only when a place is named.
    from torchwatt.carbon import resolve_intensity, resolve_pue

    for switch in ("layers", "live"):
        if given[switch] not in {"on", "off"}:
            raise ConfigError(f"{switch}={given[switch]!r}: give 'on' or 'off'")
    budget = _number("overhead_budget", given["overhead_budget"], low=0.0, high=1.0)
    baseline_s = _number("baseline_s", given["baseline_s"], low=0.0, high=60.0)
    csv, html = _target("csv", given["csv"]), _target("html", given["html"])
    return Options(
        name=str(given["name"] or "run"),
        grid=resolve_intensity(given["region"], intensity_g_per_kwh=given["intensity_g_per_kwh"]),
        pue=resolve_pue(given["pue"]),
        layers=given["layers"] == "on",
        overhead_budget=budget,
        baseline_s=baseline_s,
        csv=csv,
        html=html,
        powercap_root=None if given["powercap_root"] is None else Path(given["powercap_root"]),
        feed=given["feed"],
    )


def _number(name: str, value: Any, *, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{name}={value!r}: give a number from {low:g} to {high:g}")
    return float(value)


def _target(name: str, value: str | os.PathLike[str] | None) -> Path | None:
    """Refuse before the run what could not be written after it."""
    if value is None:
        return None
    path = Path(value)
    full = path.is_dir() and any(path.iterdir()) if name == "csv" else path.exists()
    if full:
        raise ConfigError(f"{name}={str(path)!r} exists already; an audit file is made once: name another, or move it")
    return path
