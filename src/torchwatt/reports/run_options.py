"""Options of `profile()`, checked before the measurement starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from torchwatt.audit.seal import MANIFEST
from torchwatt.audit.store import PROJECT, default_store, project_name
from torchwatt.carbon import CarbonOptions, PricingPlan
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import Slot
from torchwatt.core.trace import ReplayedPower
from torchwatt.disk.private_files import missing_folders
from torchwatt.sensors import Feed

DEFAULT_BASELINE_S = 0.2
DEFAULT_JOB_WAIT_S = 20.0
JOB_VARIABLE = "TORCHWATT_JOB"
StrPath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Checked options of one session; `carbon` holds resolved factors."""

    name: str = "run"
    carbon: PricingPlan = field(default_factory=PricingPlan)
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
    whole_machine: bool = False  # of all processes: every GPU counts, and no model of this process's share does
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
    price_per_kwh: str | None
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


def check_options(arguments: ProfileArguments) -> RunOptions:
    """Check the arguments of `profile()`.

    Raises:
        ConfigError: An option is invalid; the message names it and the fix.
        FactorError: The region or the facility is in no table, or a file of factors cannot be read.
    """
    for switch, value in (("layers", arguments["layers"]), ("live", arguments["live"])):
        if value not in ("on", "off"):
            raise ConfigError(f"{switch}={value!r}: give 'on' or 'off'")
    _check_types(arguments)
    budget = _check_number("overhead_budget", arguments["overhead_budget"], low=0.0, high=1.0)
    baseline_s = _check_number("baseline_s", arguments["baseline_s"], low=0.0, high=60.0)
    if not isinstance(arguments["overwrite"], bool):
        raise ConfigError(f"overwrite={arguments['overwrite']!r}: give True or False")
    csv, html = csv_target(arguments["csv"], overwrite=arguments["overwrite"]), html_target(arguments["html"])
    return RunOptions(
        name=str(arguments["name"] or "run"),
        carbon=make_plan(carbon_options(arguments), datetime.now(UTC)),
        layers=arguments["layers"] == "on",
        overhead_budget=budget,
        baseline_s=baseline_s,
        csv=csv,
        html=html,
        overwrite=arguments["overwrite"],
        keep=_store_option(arguments["keep"]),
        journal=_journal_option(arguments["journal"]),
        project=_project_option(arguments),
        powercap_root=_absolute_path("powercap_root", arguments["powercap_root"]),
        feed=arguments["feed"],
        dither_s=_check_number("dither_s", arguments["dither_s"], low=0.0, high=0.1),
        replays=tuple(arguments["replays"]),
        work=dict(arguments["work"] or {}),
        job=_job_option(arguments["job"]),
        job_wait_s=_check_number("job_wait_s", arguments["job_wait_s"], low=0.0, high=3600.0),
    )


def carbon_options(arguments: Mapping[str, Any]) -> CarbonOptions:
    """Return the options of carbon accounting; a missing one is None."""
    return CarbonOptions(**{item.name: arguments.get(item.name) for item in fields(CarbonOptions)})


def _check_types(arguments: ProfileArguments) -> None:
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


def _check_number(name: str, value: Any, *, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value) or not low <= float(value) <= high:
        raise ConfigError(f"{name}={value!r}: give a number from {low:g} to {high:g}")
    return float(value)


def _store_option(keep: str | os.PathLike[str] | bool | None) -> Path | None:
    """Return the store in which to save the run; True is the user's default store."""
    if keep is None or isinstance(keep, bool):
        return default_store() if keep else None
    return _absolute_path("keep", keep)


def _job_option(folder: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder for the ranks' bundles, from the option or from `TORCHWATT_JOB`."""
    folder_text = folder or os.environ.get(JOB_VARIABLE)
    return _absolute_path("job", folder_text) if folder_text else None


def _journal_option(journal: str | os.PathLike[str] | bool | None) -> Path | bool:
    return (
        bool(journal) if journal is None or isinstance(journal, bool) else _absolute_path("journal", journal) or False
    )


def _project_option(arguments: ProfileArguments) -> str:
    if arguments["project"] is None:
        return PROJECT
    if _store_option(arguments["keep"]) is None:
        raise ConfigError("project= names the project of a saved run: give keep= as well")
    return project_name(str(arguments["project"]))


def csv_target(value: str | os.PathLike[str] | None, *, overwrite: bool) -> Path | None:
    """Return where to write the tables; `overwrite` allows replacing a bundle there.

    Raises:
        ConfigError: It is a file, cannot be written, or is to be replaced and is not a bundle.
    """
    path = _absolute_path("csv", value)
    if path is None:
        return None
    if path.exists() and not path.is_dir():
        raise ConfigError(f"csv={str(path)!r} is a file: name a folder")
    if overwrite and path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ConfigError(
            f"csv={str(path)!r} is not a bundle, and overwrite= replaces only bundles: name another folder"
        )
    return _check_writable("csv", path, path)


def html_target(value: str | os.PathLike[str] | None) -> Path | None:
    """Return where to write the page; an older one is replaced.

    Raises:
        ConfigError: It is not a file, or cannot be written.
    """
    path = _absolute_path("html", value)
    if path is None:
        return None
    if path.exists() and not path.is_file():
        raise ConfigError(f"html={str(path)!r} is not a file: name one, such as {str(path / 'report.html')!r}")
    return _check_writable("html", path, path.parent)


def _absolute_path(name: str, value: Any) -> Path | None:
    """Return an absolute path, because the run may change the working directory."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"{name}={value!r}: give a path")
    return Path(value).expanduser().absolute()


def _check_writable(name: str, path: Path, folder: Path) -> Path:
    """Raise before the run if the path could not be written after it."""
    try:
        missing_folders(folder)
    except PermissionError as error:
        raise ConfigError(f"{name}={str(path)!r}: {error.strerror}; make it, or name another") from error
    above = next(parent for parent in (path.parent, *path.parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}={str(path)!r} could not be written: {above} is not a folder that you may write to")
    return path


LEAVE_OUT_MODEL = "leave it out, and models are detected automatically"
_MAX_SHOWN_CHARS = 40


def named_models(argument: Any) -> tuple[tuple[str, Any], ...]:
    """Return (name, model) pairs; a name is "" if it is to be taken from the user's variable.

    Args:
        argument: A module, several in a list, or a mapping of names to modules; None for no model.

    Raises:
        ConfigError: It is something else; the message names it and the fix.
    """
    if argument is None:
        return ()
    if _is_module(argument):
        return (("", argument),)
    if isinstance(argument, Mapping):
        _check_models(argument.values(), "mapping", argument)
        return tuple((str(name), model) for name, model in argument.items())
    if isinstance(argument, list | tuple | set | frozenset):
        _check_models(argument, type(argument).__name__, argument)
        return tuple(("", model) for model in argument)
    raise ConfigError(f"profile({_describe_value(argument)}): {_explain_no_model(argument)}")


def reject_positional(values: tuple[Any, ...]) -> None:
    """Reject positional arguments after the first.

    Raises:
        ConfigError: There are any; the message suggests the option.
    """
    if not values:
        return
    if all(map(_is_module, values)):
        raise ConfigError("profile() takes several models in a list: profile([generator, critic])")
    first_value = values[0]
    option = "region" if isinstance(first_value, str) and len(first_value) == 3 and first_value.isupper() else "name"
    hint = f"{option}={first_value!r}" if isinstance(first_value, str) else "profile(model, region='FRA', csv='audit')"
    raise ConfigError(
        f"profile(model, {_describe_value(first_value)}): all arguments but the model need their names, such as {hint}"
    )


def reject_unknown(names: Iterable[str], option_names: Iterable[str]) -> None:
    """Reject options that do not exist.

    Raises:
        ConfigError: There are any; the message suggests the nearest existing one.
    """
    for name in names:
        near = get_close_matches(name, list(option_names), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}=?" if near else "help(torchwatt.profile) lists all options"
        raise ConfigError(f"profile() has no option {name}=: {hint}")


def _check_models(models: Iterable[Any], kind: str, argument: Any) -> None:
    each = list(models)
    tensors = [model for model in each if _is_instance(model, "torch", "Tensor")]
    if tensors and len(tensors) == len(each):
        mistake = "a state_dict" if isinstance(argument, Mapping) else "tensors"
        raise ConfigError(f"profile() was given {mistake}: give the model itself, profile(model)")
    if not each:
        raise ConfigError(f"profile() was given an empty {kind}: {LEAVE_OUT_MODEL}")
    for model in each:
        if not _is_module(model):
            raise ConfigError(
                f"profile() takes models, and {_describe_value(model)} in the {kind} is not one: "
                f"{_explain_no_model(model)}"
            )


def _explain_no_model(argument: Any) -> str:  # noqa: PLR0911  one sentence for each kind of mistake
    kind = type(argument).__name__
    if isinstance(argument, type):
        return f"that is a class; build a model of it first: model = {argument.__name__}(...)"
    if isinstance(argument, str):
        option = "region" if len(argument) == 3 and argument.isupper() else "name"
        return f"a string is not a model; write {option}={argument!r}"
    if _is_instance(argument, "torch", "Tensor"):
        return "that is a tensor, the result of a call; give the model itself: profile(model), not profile(model(x))"
    for module, name, description in (
        ("torch.optim.optimizer", "Optimizer", "an optimizer"),
        ("torch.optim.lr_scheduler", "LRScheduler", "a scheduler"),
        ("torch.utils.data", "DataLoader", "a DataLoader"),
        ("torch.utils.data", "Dataset", "a dataset"),
    ):
        if _is_instance(argument, module, name):
            return f"that is {description}; give the model; {description} is detected automatically"
    if _is_module(getattr(argument, "model", None)):
        return f"that is {_with_article(kind)}; give the model in it: profile({kind.lower()}.model)"
    if hasattr(argument, "__next__"):
        return f"{_with_article(kind)} is not a model; give the model itself, not model.parameters() or model.modules()"
    if callable(argument):
        return "profile takes a model or no argument: write @profile() with parentheses to decorate a function"
    return f"{_with_article(kind)} is not a model; give a torch.nn.Module, or {LEAVE_OUT_MODEL}"


def _is_module(value: Any) -> bool:
    return _is_instance(value, "torch.nn", "Module")


def _is_instance(value: Any, module: str, name: str) -> bool:
    """Return whether a value is an instance of a class; a module that is not imported has no instances."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind[:1].lower() in "aeiou" else f"a {kind}"


def _describe_value(value: Any) -> str:
    """Return a short text that identifies a value for the user."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, str | int | float | bool):
        text = repr(value)
        return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
    return getattr(value, "__qualname__", "") or f"<{type(value).__name__}>"
