"""`profile()`, `scope()` and `stage()`, the public context managers."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never, NoReturn, ParamSpec, TypeVar, cast

from torchwatt.core.errors import ConfigError, TorchwattError, warn
from torchwatt.core.report import Status
from torchwatt.core.terms import Slot
from torchwatt.core.trace import ReplayedPower
from torchwatt.core.tracebacks import drop_own_frames, hide_own_frames, skip_own_frames
from torchwatt.reports.run_options import (
    DEFAULT_BASELINE_S,
    DEFAULT_JOB_WAIT_S,
    ProfileArguments,
    check_options,
    named_models,
    reject_positional,
    reject_unknown,
)
from torchwatt.sensors import Feed
from torchwatt.session.run import Run
from torchwatt.session.session import Session
from torchwatt.session.session_registry import make_run_view
from torchwatt.tracing import scope, stage

if TYPE_CHECKING:
    from torch import nn

__all__ = ["profile", "scope", "stage"]

P = ParamSpec("P")
R = TypeVar("R")


class profile:  # noqa: N801  # reads as a verb, like `contextlib.suppress`
    """Measure the energy of a block of code and attribute it to the layers of its models.

    Use it as a context manager, `with profile() as run:`, or as a decorator, `@profile()`; the decorated function
    then has the latest result as `function.run`.

    Args:
        model: The model whose modules are named as in `state_dict`. Several in a list, or in a mapping from names to
            models, are named by their variables, or by these names. Without it, models are detected automatically.
        region: Grid region of the electricity ("FRA", "USA/california"); without it no grams are computed.
        intensity_g_per_kwh: Carbon intensity of the grid, instead of a region's.
        market: gCO2e/kWh of your electricity contract, for a market-based total beside the location-based one.
        facility: A site with published PUE, water and grid mix, such as "scaleway/fr-par-2".
        pue: Facility energy over IT energy, at least 1, or (value, lo, hi); for grams and cost.
        factors: Your own file of factors or of a grid over time, or an Electricity Maps history file, or several.
        allow_expired: Apply factors outside of their dates; their rows are marked.
        price_per_kwh: Price of electricity with its currency ("0.32 EUR"), for the cost of the run.
        name: Shown in reports.
        layers: "on" or "off"; "off" measures energy without layers.
        overhead_budget: Largest fraction of the run time that tracing may cost.
        baseline_s: Seconds of idle baseline before the block, which gives the static power.
        csv: A folder for the audit tables, written at the end; if it is not empty, `NAME-2` beside it is used.
        html: A file for the report, written at the end; an older one is replaced.
        overwrite: Replace the bundle at `csv`; anything but a bundle is never replaced.
        keep: A store (a folder), or True for the default one: the run is saved there at the end; see `torchwatt runs`.
        project: Project of the run in the store; default "default".
        journal: A new folder to which readings and layers are written during the run, so that `torchwatt.recover` can
            make a report even if the process is killed. True: in the store, removed when the run ends normally.
        live: "on" shows the run in a notebook while it runs, and its report at the end; "off" shows nothing.
        powercap_root: Root of RAPL's powercap tree; default `TORCHWATT_POWERCAP_ROOT` or the system's.
        feed: Readings from another source, such as `torchwatt.sensors.Replay`.
        dither_s: Sleep a random time of at most this many seconds after each step, if steps run in sync with the
            sensor (event `PHASES_UNSEEN`). 0.001 is enough. Default: no sleep.
        replays: Result of `torchwatt.replay`: power of layers measured alone, used as prior information.
        work: Result of `torchwatt.work_of`: operations and bytes per call of each layer, used as prior information.
        job: In a job of several ranks (torchrun, Slurm): the folder to which each rank writes its results, for
            `torchwatt merge`; default `TORCHWATT_JOB`. Ignored outside of a job.
        job_wait_s: Seconds that rank 0 waits at the end for the other ranks' results, if files are requested.

    Raises:
        ConfigError: An argument is invalid.
        FactorError: The region is in no table.
    """

    def __init__(  # noqa: PLR0913  # the product's options, each named
        self,
        model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module] | None = None,
        *misplaced: Never,
        region: str | None = None,
        intensity_g_per_kwh: float | None = None,
        market: float | None = None,
        facility: str | None = None,
        pue: float | tuple[float, float, float] | None = None,
        factors: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        allow_expired: bool = False,
        price_per_kwh: str | None = None,
        name: str | None = None,
        layers: str = "on",
        overhead_budget: float = 0.01,
        baseline_s: float = DEFAULT_BASELINE_S,
        csv: str | os.PathLike[str] | None = None,
        html: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        keep: str | os.PathLike[str] | bool | None = None,
        project: str | None = None,
        journal: str | os.PathLike[str] | bool | None = None,
        live: str = "on",
        powercap_root: str | os.PathLike[str] | None = None,
        feed: Feed | None = None,
        dither_s: float = 0.0,
        replays: Sequence[ReplayedPower] = (),
        work: Mapping[Slot, tuple[float, float]] | None = None,
        job: str | os.PathLike[str] | None = None,
        job_wait_s: float = DEFAULT_JOB_WAIT_S,
        **unknown: Never,
    ) -> None:
        arguments = ProfileArguments(
            region=region, intensity_g_per_kwh=intensity_g_per_kwh, market=market, facility=facility, pue=pue,
            factors=factors, allow_expired=allow_expired, price_per_kwh=price_per_kwh, name=name, layers=layers,
            overhead_budget=overhead_budget, baseline_s=baseline_s, csv=csv, html=html, overwrite=overwrite,
            keep=keep, project=project, journal=journal, live=live, powercap_root=powercap_root, feed=feed,
            dither_s=dither_s, replays=replays, work=work, job=job, job_wait_s=job_wait_s,
        )  # fmt: skip
        try:
            reject_positional(misplaced)
            reject_unknown(unknown, arguments)
            self._models = named_models(model)
        except ConfigError as error:
            error.__traceback__ = skip_own_frames(error.__traceback__)  # the message says it; the user's line remains
            raise
        self._model = model
        self._arguments = arguments
        self._session: Session | None = None
        self._watcher = make_run_view("off")

    def __getattr__(self, name: str) -> NoReturn:
        """Raise an AttributeError that points to the result (`run`) for names that exist there."""
        hint = ""
        if not name.startswith("_") and hasattr(Run, name):
            hint = f": the result is what `with profile() as run:` gives, so write run.{name}"
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)

    def __enter__(self) -> Run:
        try:
            return self._begin()
        except TorchwattError as error:
            error.__traceback__ = skip_own_frames(error.__traceback__)  # the message says it; the user's line remains
            raise

    def _begin(self) -> Run:
        if self._session is not None and self._session.running:
            raise ConfigError("this profile() is already running: make a new one for a nested block")
        self._session = Session(check_options(self._arguments), self._models)
        self._watcher = make_run_view(self._arguments["live"])
        self._session.start()
        run = Run(self._session)
        try:
            self._watcher.begin(run)
        except BaseException as error:  # an interrupt: the session must not stay open
            self._session.stop(*outcome_of(error))
            raise
        return run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            hide_own_frames(error)
        self.end(*outcome_of(error))
        written = self._session.written if self._session is not None else None
        for note in written.notes if written is not None else ():
            warn(f"torchwatt: {note}")

    def end(self, status: Status = "complete", reason: str = "") -> None:
        """End what `__enter__` began, with a status and reason; for callback APIs that cannot use `with`."""
        if self._session is not None:
            self._watcher.pause()
            self._session.stop(status, reason)
            self._watcher.end()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Profile every call of a function; the latest result is the function's `run`.

        For a coroutine or a generator, the block is from its first step to its end.
        """
        if inspect.isasyncgenfunction(function):
            raise ConfigError("profile() cannot decorate an async generator: use `with profile()` where it is consumed")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def profiled_async(*args: Any, **kwargs: Any) -> Any:
                try:
                    with profile(self._model, **self._arguments) as run:
                        profiled_async.run = run  # type: ignore[attr-defined]
                        return await function(*args, **kwargs)
                except BaseException as error:
                    drop_own_frames(error)
                    raise

            return cast("Callable[P, R]", profiled_async)

        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def profiled_generator(*args: Any, **kwargs: Any) -> Any:
                try:
                    with profile(self._model, **self._arguments) as run:
                        profiled_generator.run = run  # type: ignore[attr-defined]
                        return (yield from function(*args, **kwargs))
                except BaseException as error:
                    drop_own_frames(error)
                    raise

            return cast("Callable[P, R]", profiled_generator)

        @functools.wraps(function)
        def profiled(*args: P.args, **kwargs: P.kwargs) -> R:
            without_live: ProfileArguments = {**self._arguments, "live": "off"}
            try:
                with profile(self._model, **without_live) as run:
                    profiled.run = run  # type: ignore[attr-defined]
                    return function(*args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise

        return profiled


def outcome_of(error: BaseException | None) -> tuple[Status, str]:
    """Return status and reason of a block's end; a `sys.exit()` with code 0 or None is `complete`."""
    if error is None:
        return "complete", ""
    if isinstance(error, SystemExit) and (error.code is None or (isinstance(error.code, int) and error.code == 0)):
        return "complete", "SystemExit"
    return "aborted", type(error).__name__
