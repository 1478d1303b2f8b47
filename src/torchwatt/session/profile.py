"""`profile()` and `scope()`, as users write them."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never, NoReturn, ParamSpec, TypeVar, cast

from torchwatt.core.errors import ConfigError, TorchwattError
from torchwatt.core.replay import ReplayedPower
from torchwatt.core.report import Status
from torchwatt.core.terms import Slot
from torchwatt.core.tracebacks import below_own_frames, drop_own_frames, hide_own_frames
from torchwatt.core.warn import warn
from torchwatt.sensors import Feed
from torchwatt.session.models import models_of, refuse_misplaced, refuse_unknown
from torchwatt.session.options import DEFAULT_BASELINE_S, DEFAULT_JOB_WAIT_S, options
from torchwatt.session.run import Run
from torchwatt.session.session import Session
from torchwatt.session.watch import watcher
from torchwatt.tracing import scope

if TYPE_CHECKING:
    from torch import nn

__all__ = ["profile", "scope"]

P = ParamSpec("P")
R = TypeVar("R")


class profile:  # noqa: N801  # reads as a verb, like `contextlib.suppress`
    """Meter a block of code, and say which layer used the joules.

    Use it as a context manager, `with profile() as run:`, or as a decorator, `@profile()`; the decorated function
    then carries the latest result as `function.run`.

    Args:
        model: Names its modules as in `state_dict`. Several in a list, or in a mapping from names to models, are named
            by the variables that hold them, or by these names. Without it, modules are found and named by themselves.
        region: Where the electricity comes from ("FRA", "USA/california"); without it there are no grams.
        intensity_g_per_kwh: Your own number for the grid, instead of a region's.
        market: gCO2e/kWh of your electricity contract, for a market-based total beside the location-based one.
        facility: A site with published PUE, water and grid mix, such as "scaleway/fr-par-2".
        pue: Facility energy over IT energy, at least 1, or (value, lo, hi); grams only.
        factors: Your own file of factors or of a grid over time, or an Electricity Maps history file, or several.
        allow_expired: Apply factors outside of their dates, and say so in their rows.
        name: Shown in reports.
        layers: "on" or "off"; off meters only.
        overhead_budget: Part of the time that looking into backward passes may cost.
        baseline_s: Quiet time sampled before the block, to know the static power and to hear every meter once.
        csv: A folder: the audit tables are written there at the end; where it holds a run, into `NAME-2` beside it.
        html: A file: the report is written there at the end, over an older one.
        overwrite: Replace the bundle that `csv` holds; anything but a bundle is never replaced.
        keep: A store (a folder), or True for your own: the run is kept there at the end; see `torchwatt runs`.
        project: Under which project it is kept; default "default".
        journal: A folder that does not exist yet: readings and layers are written there while the run runs, so that
            `torchwatt.recover` makes a report of it even if the process is killed. True: in the store, until the run
            has ended by itself.
        live: "on" shows the run in a notebook while it runs, and its report at the end; "off" shows nothing.
        powercap_root: Where RAPL's powercap tree is; default `TORCHWATT_POWERCAP_ROOT` or the system's.
        feed: Readings from elsewhere, such as `torchwatt.sensors.Replay`.
        dither_s: Sleep for a random moment of at most so many seconds after each step: for steps that keep time with
            the sensor (the report says so). 0.001 is enough. Never done unless asked.
        replays: What `torchwatt.replay` found: layers looped alone, for the estimator to lean on.
        work: What `torchwatt.work_of` found: operations and bytes of each layer's call, likewise.
        job: Of a job of several ranks (torchrun, Slurm): the folder in which each rank leaves what it measured, for
            `torchwatt merge`; default `TORCHWATT_JOB`. Outside of a job it does nothing.
        job_wait_s: How long rank 0 waits at the end for the other ranks' parts, if files were asked for.

    Raises:
        ConfigError: An argument is impossible.
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
        given = dict(locals())
        del given["self"], given["model"], given["misplaced"], given["unknown"]
        try:
            refuse_misplaced(misplaced)
            refuse_unknown(unknown, given)
            self._models = models_of(model)
        except ConfigError as error:
            error.__traceback__ = below_own_frames(error.__traceback__)  # the message says it; the user's line remains
            raise
        self._model = model
        self._given = given
        self._session: Session | None = None
        self._watcher = watcher("off")

    def __getattr__(self, name: str) -> NoReturn:
        """Say where the result is to those who look for it here."""
        hint = ""
        if not name.startswith("_") and hasattr(Run, name):
            hint = f": the result is what `with profile() as run:` gives, so write run.{name}"
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)

    def __enter__(self) -> Run:
        try:
            return self._begin()
        except TorchwattError as error:
            error.__traceback__ = below_own_frames(error.__traceback__)  # the message says it; the user's line remains
            raise

    def _begin(self) -> Run:
        if self._session is not None and self._session.running:
            raise ConfigError("this profile() is already running: make a new one for a nested block")
        self._session = Session(options(self._given), self._models)
        self._watcher = watcher(self._given["live"])
        self._session.start()
        run = Run(self._session)
        try:
            self._watcher.begin(run)
        except BaseException as error:  # an interrupt: nothing may go on that nobody will end
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
        """End what `__enter__` began, and say why; for loops of others, which call back and know no `with`."""
        if self._session is not None:
            self._watcher.pause()
            self._session.stop(status, reason)
            self._watcher.end()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Profile every call of a function; the latest result is the function's `run`.

        Of a coroutine or a generator, everything from its first step to its end.
        """
        if inspect.isasyncgenfunction(function):
            raise ConfigError("profile() cannot decorate an async generator: use `with profile()` where it is consumed")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def profiled_async(*args: Any, **kwargs: Any) -> Any:
                try:
                    with profile(self._model, **self._given) as run:
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
                    with profile(self._model, **self._given) as run:
                        profiled_generator.run = run  # type: ignore[attr-defined]
                        return (yield from function(*args, **kwargs))
                except BaseException as error:
                    drop_own_frames(error)
                    raise

            return cast("Callable[P, R]", profiled_generator)

        @functools.wraps(function)
        def profiled(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with profile(self._model, **{**self._given, "live": "off"}) as run:
                    profiled.run = run  # type: ignore[attr-defined]
                    return function(*args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise

        return profiled


def outcome_of(error: BaseException | None) -> tuple[Status, str]:
    """Return how a block ended: a clean `sys.exit()` is an end like any other."""
    if error is None:
        return "complete", ""
    if isinstance(error, SystemExit) and (error.code is None or (isinstance(error.code, int) and error.code == 0)):
        return "complete", "SystemExit"
    return "aborted", type(error).__name__
