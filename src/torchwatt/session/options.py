"""Options of `profile()`, checked before the measurement starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from torchwatt.audit.seal import MANIFEST
from torchwatt.audit.store import PROJECT, default_store, project_name
from torchwatt.carbon import Asked, Plan
from torchwatt.carbon.plan import plan
from torchwatt.core.errors import ConfigError
from torchwatt.core.replay import ReplayedPower
from torchwatt.core.terms import Slot
from torchwatt.disk.private import missing_folders
from torchwatt.sensors import Feed

DEFAULT_BASELINE_S = 0.2
DEFAULT_JOB_WAIT_S = 20.0
JOB_VARIABLE = "TORCHWATT_JOB"
StrPath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Options:
    """Checked options of one session; `carbon` holds resolved factors."""

    name: str = "run"
    carbon: Plan = field(default_factory=Plan)
    layers: bool = True
    overhead_budget: float = 0.01
    baseline_s: float = DEFAULT_BASELINE_S
    csv: Path | None = None
    html: Path | None = None
    overwrite: bool = False  # replace an older bundle at `csv`
    keep: Path | None = None
    journal: Path | bool = False  # True: in the store, removed when the run ends normally
    project: str = PROJECT
    powercap_root: Path | None = None
    feed: Feed | None = None
    dither_s: float = 0.0
    replays: tuple[ReplayedPower, ...] = ()
    work: Mapping[Slot, tuple[float, float]] = field(default_factory=dict)
    job: Path | None = None
    job_wait_s: float = DEFAULT_JOB_WAIT_S

    @property
    def files(self) -> bool:
        """Return whether any output file is requested."""
        return any(target is not None for target in (self.csv, self.html, self.keep, self.job))


class ProfileArguments(TypedDict):
    """The keyword arguments of `profile()`, as the user gave them; its docstring describes each."""

    region: str | None
    intensity_g_per_kwh: float | None
    market: float | None
    facility: str | None
    pue: float | tuple[float, float, float] | None
    factors: StrPath | Sequence[StrPath] | None
    allow_expired: bool
    name: str | None
    layers: str
    overhead_budget: float
    baseline_s: float
    csv: StrPath | None
    html: StrPath | None
    overwrite: bool
    keep: StrPath | bool | None
    project: str | None
    journal: StrPath | bool | None
    live: str
    powercap_root: StrPath | None
    feed: Feed | None
    dither_s: float
    replays: Sequence[ReplayedPower]
    work: Mapping[Slot, tuple[float, float]] | None
    job: StrPath | None
    job_wait_s: float


def options(arguments: ProfileArguments) -> Options:
    """Check the arguments of `profile()`.

    Raises:
        ConfigError: An option is invalid; the message names it and the fix.
        FactorError: The region or the facility is in no table, or a file of factors cannot be read.
    """
    for switch, value in (("layers", arguments["layers"]), ("live", arguments["live"])):
        if value not in ("on", "off"):
            raise ConfigError(f"{switch}={value!r}: give 'on' or 'off'")
    _check_kinds(arguments)
    budget = _number("overhead_budget", arguments["overhead_budget"], low=0.0, high=1.0)
    baseline_s = _number("baseline_s", arguments["baseline_s"], low=0.0, high=60.0)
    if not isinstance(arguments["overwrite"], bool):
        raise ConfigError(f"overwrite={arguments['overwrite']!r}: give True or False")
    csv, html = csv_target(arguments["csv"], overwrite=arguments["overwrite"]), html_target(arguments["html"])
    return Options(
        name=str(arguments["name"] or "run"),
        carbon=plan(carbon_asked(arguments), datetime.now(UTC)),
        layers=arguments["layers"] == "on",
        overhead_budget=budget,
        baseline_s=baseline_s,
        csv=csv,
        html=html,
        overwrite=arguments["overwrite"],
        keep=_store(arguments["keep"]),
        journal=_journal(arguments["journal"]),
        project=_project(arguments),
        powercap_root=_path("powercap_root", arguments["powercap_root"]),
        feed=arguments["feed"],
        dither_s=_number("dither_s", arguments["dither_s"], low=0.0, high=0.1),
        replays=tuple(arguments["replays"]),
        work=dict(arguments["work"] or {}),
        job=_job(arguments["job"]),
        job_wait_s=_number("job_wait_s", arguments["job_wait_s"], low=0.0, high=3600.0),
    )


def carbon_asked(arguments: Mapping[str, Any]) -> Asked:
    """Return the options of carbon accounting; a missing one is None."""
    return Asked(**{item.name: arguments.get(item.name) for item in fields(Asked)})


def _check_kinds(arguments: ProfileArguments) -> None:
    """Check the types of arguments.

    Raises:
        ConfigError: An argument has the wrong type; the message names the right one.
    """
    feed, replays, work = arguments["feed"], arguments["replays"], arguments["work"]
    region, facility, expired = arguments["region"], arguments["facility"], arguments["allow_expired"]
    factors, pue = arguments["factors"], arguments["pue"]
    each = factors if isinstance(factors, list | tuple) else () if factors is None else (factors,)
    numbers = pue if isinstance(pue, list | tuple) else () if pue is None else (pue,)
    for name, value, good, takes in (
        ("region", region, isinstance(region, str | None), "a place, such as 'FRA' or 'USA/california'"),
        ("facility", facility, isinstance(facility, str | None), "a site, such as 'scaleway/fr-par-2'"),
        ("allow_expired", expired, isinstance(expired, bool | None), "True or False"),
        ("factors", factors, all(isinstance(path, str | os.PathLike) for path in each), "a file, or a list of files"),
        ("pue", pue, all(isinstance(n, Real) for n in numbers), "a number, or (value, lo, hi)"),
        ("feed", feed, feed is None or hasattr(feed, "meters"), "such as torchwatt.sensors.Replay"),
        ("replays", replays, isinstance(replays, list | tuple), "a list of results of torchwatt.replay"),
        ("work", work, isinstance(work, Mapping | None), "the result of torchwatt.work_of"),
    ):
        if not good:
            raise ConfigError(f"{name}={value!r}: give {takes}")


def _number(name: str, value: Any, *, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value) or not low <= float(value) <= high:
        raise ConfigError(f"{name}={value!r}: give a number from {low:g} to {high:g}")
    return float(value)


def _store(keep: str | os.PathLike[str] | bool | None) -> Path | None:
    """Return the store in which to save the run; True is the user's default store."""
    if keep is None or isinstance(keep, bool):
        return default_store() if keep else None
    return _path("keep", keep)


def _job(folder: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder for the ranks' bundles, from the option or from `TORCHWATT_JOB`."""
    folder_text = folder or os.environ.get(JOB_VARIABLE)
    return _path("job", folder_text) if folder_text else None


def _journal(journal: str | os.PathLike[str] | bool | None) -> Path | bool:
    return bool(journal) if journal is None or isinstance(journal, bool) else _path("journal", journal) or False


def _project(arguments: ProfileArguments) -> str:
    if arguments["project"] is None:
        return PROJECT
    if _store(arguments["keep"]) is None:
        raise ConfigError("project= names the project of a saved run: give keep= as well")
    return project_name(str(arguments["project"]))


def csv_target(value: str | os.PathLike[str] | None, *, overwrite: bool) -> Path | None:
    """Return where to write the tables; `overwrite` allows replacing a bundle there.

    Raises:
        ConfigError: It is a file, cannot be written, or is to be replaced and is not a bundle.
    """
    path = _path("csv", value)
    if path is None:
        return None
    if path.exists() and not path.is_dir():
        raise ConfigError(f"csv={str(path)!r} is a file: name a folder")
    if overwrite and path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ConfigError(
            f"csv={str(path)!r} is not a bundle, and overwrite= replaces only bundles: name another folder"
        )
    return _writable("csv", path, path)


def html_target(value: str | os.PathLike[str] | None) -> Path | None:
    """Return where to write the page; an older one is replaced.

    Raises:
        ConfigError: It is not a file, or cannot be written.
    """
    path = _path("html", value)
    if path is None:
        return None
    if path.exists() and not path.is_file():
        raise ConfigError(f"html={str(path)!r} is not a file: name one, such as {str(path / 'report.html')!r}")
    return _writable("html", path, path.parent)


def _path(name: str, value: Any) -> Path | None:
    """Return an absolute path, because the run may change the working directory."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"{name}={value!r}: give a path")
    return Path(value).expanduser().absolute()


def _writable(name: str, path: Path, folder: Path) -> Path:
    """Raise before the run if the path could not be written after it."""
    try:
        missing_folders(folder)
    except PermissionError as error:
        raise ConfigError(f"{name}={str(path)!r}: {error.strerror}; make it, or name another") from error
    above = next(parent for parent in (path.parent, *path.parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}={str(path)!r} could not be written: {above} is not a folder that you may write to")
    return path
