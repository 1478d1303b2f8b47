"""`scope` and `stage`: the user's own names for parts of a program, and for what it is doing."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar, cast

from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import RESERVED, ROOT, STAGE_PREFIX
from torchwatt.core.tracebacks import drop_own_frames


class NameRecorder(Protocol):
    """What logs scopes and stages."""

    def scope_begins(self, name: str) -> Any:
        """Open a scope; the result is passed to `scope_ended`."""

    def scope_ended(self, begun: Any) -> None:
        """Log a scope on the thread where it began."""

    def stage_begins(self, name: str) -> Any:
        """Open a stage; the result is passed to `stage_ended`. None: no stage here."""

    def stage_ended(self, begun: Any) -> None:
        """Log a stage on the thread where it began."""


class NamingInstrumentation(Protocol):
    """What scopes and stages use of the running instrumentation."""

    @property
    def named(self) -> NameRecorder:
        """Return what logs them."""


class StageListener(Protocol):
    """What is notified of stages, whether or not layers are traced."""

    def stage_began(self, name: str, t_ns: int) -> None:
        """Record that this thread entered a stage."""

    def stage_ended(self, name: str, t_ns: int) -> None:
        """Record that this thread left a stage."""


class ActiveInstrumentation:
    """Holds the one hub of this process, and what is notified of stages."""

    __slots__ = ("hub", "listeners")

    def __init__(self) -> None:
        self.hub: NamingInstrumentation | None = None
        self.listeners: tuple[StageListener, ...] = ()


ACTIVE = ActiveInstrumentation()


P = ParamSpec("P")
R = TypeVar("R")


def scope(name: str) -> Scope:
    """Name a part of the program, as a context manager or a decorator.

    Its time is booked to `name` in phase "other", the backward pass of its results to `name` in phase "backward".
    Without a running session, and inside `torch.compile`, it does nothing.

    Raises:
        ConfigError: The name is empty, or a reserved row of the report.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"scope({name!r}): give the stretch of code a name")
    if name in RESERVED or name == ROOT:
        raise ConfigError(f"scope({name!r}): that is a row of the report's own; take another name")
    return Scope(name)


class Scope:
    """The context manager that `scope` returns; may be entered again, also recursively."""

    __slots__ = ("_open", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._open: list[Any] = []

    def __enter__(self) -> Self:
        if _is_compiling():
            return self
        hub = ACTIVE.hub
        begun = None if hub is None else self._begin(hub.named)
        recorded = None if hub is None or begun is None else (hub.named, begun)
        self._open.append((recorded, self._annotate()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _is_compiling():
            return
        recorded, annotation = self._open.pop() if self._open else (None, None)
        if annotation is not None:
            annotation.__exit__(None, None, None)
        if recorded is not None:
            self._end(*recorded)

    def _annotate(self) -> Any:
        """Return a range that was opened in the trace of the user's profiler, or None."""
        return None

    def _begin(self, recorder: NameRecorder) -> Any:
        return recorder.scope_begins(self.name)

    def _end(self, recorder: NameRecorder, begun: Any) -> None:
        recorder.scope_ended(begun)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wrap a function so that each call of it is a range."""
        kind, name = type(self), self.name
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                try:
                    with kind(name):
                        return await function(*args, **kwargs)
                except BaseException as error:
                    drop_own_frames(error)
                    raise

            return cast("Callable[P, R]", run_async)

        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def run_generator(*args: Any, **kwargs: Any) -> Any:
                try:
                    with kind(name):
                        return (yield from function(*args, **kwargs))
                except BaseException as error:
                    drop_own_frames(error)
                    raise

            return cast("Callable[P, R]", run_generator)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with kind(name):
                    return function(*args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise

        return run


def _is_compiling() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


class Stage(Scope):
    """The context manager that `stage` returns; may be entered again, also recursively."""

    __slots__ = ()

    def __enter__(self) -> Self:
        super().__enter__()
        if ACTIVE.listeners and not _is_compiling():
            t_ns = time.monotonic_ns()
            for listener in ACTIVE.listeners:
                listener.stage_began(self.name, t_ns)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if ACTIVE.listeners and not _is_compiling():
            t_ns = time.monotonic_ns()
            for listener in ACTIVE.listeners:
                listener.stage_ended(self.name, t_ns)
        super().__exit__(kind, error, trace)

    def _begin(self, recorder: NameRecorder) -> Any:
        return recorder.stage_begins(self.name)

    def _end(self, recorder: NameRecorder, begun: Any) -> None:
        recorder.stage_ended(begun)

    def _annotate(self) -> Any:
        return open_annotation(STAGE_PREFIX + self.name)


def open_annotation(name: str) -> Any:
    """Open a range in the trace of a profiler that is running, whosever it is; None without one."""
    profiler = sys.modules.get("torch.autograd.profiler")  # a profiler that runs has been imported
    enabled = getattr(profiler, "_is_profiler_enabled", False)
    if profiler is None or not (enabled or sys.modules["torch"].autograd._profiler_enabled()):
        return None
    annotation = profiler.record_function(name)
    annotation.__enter__()
    return annotation


def stage(name: str) -> Stage:
    """Name the stage of the program ("prefill", "decode"), as a context manager or a decorator.

    Layers, energy outside of layers and steps of its time on its thread are booked to the stage: the column `stage` of
    `run.layers`. Stages may be nested; the innermost counts. A stage that begins inside the call of a module does
    nothing, and an event says so. In the trace of a profiler of your own it is the range `stage: NAME`, by which
    `torchwatt attribute` knows it, also without a session. Otherwise, and inside `torch.compile`, it does nothing.

    Raises:
        ConfigError: The name is empty.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"stage({name!r}): give the stage a name, such as 'prefill'")
    return Stage(name)


MAX_MARKS = 20_000
MarkColumns = tuple["array[int]", "array[int]", "array[int]"]


class StepMarks:
    """Ends of consecutive steps; beyond `MAX_MARKS` neighbours are merged.

    Steps with other work between them stay separate: a row of several steps contains these steps only.
    """

    def __init__(self, most_entries: int = MAX_MARKS) -> None:
        self._most = most_entries + most_entries % 2  # even, so that neighbours merge in pairs
        self._entries = array("q"), array("q"), array("q")  # ends, counts, starts after a pause
        self._begin_ns = 0
        self.every = 1  # steps per entry; the last entry, and those before a pause, may have fewer
        self.steps = 0

    def resume(self, t_ns: int) -> None:
        """Record that the time since the last step was no part of a step."""
        self._begin_ns = t_ns

    def add(self, end_ns: int) -> None:
        """Record a step."""
        while len(self._entries[0]) >= self._most and self._is_new():
            self._put_together()
        if self._is_new():
            _append_entry(self._entries, end_ns, 1, self._begin_ns)
        else:
            _extend_entry(self._entries, end_ns, 1)
        self._begin_ns = 0
        self.steps += 1

    def _is_new(self) -> bool:
        counts = self._entries[1]
        return not counts or counts[-1] >= self.every or self._begin_ns > 0

    def _put_together(self) -> None:
        self.every *= 2
        fewer: MarkColumns = array("q"), array("q"), array("q")
        for end_ns, count, begin_ns in zip(*self._entries, strict=True):
            if fewer[0] and not begin_ns and fewer[1][-1] + count <= self.every:
                _extend_entry(fewer, end_ns, count)
            else:
                _append_entry(fewer, end_ns, count, begin_ns)
        self._entries = fewer
        if self.every > self.steps:  # only pauses keep the entries separate
            self._most *= 2

    def entries(self) -> list[tuple[int, int]]:
        """Return (end_ns, steps) of each entry."""
        ends, counts, _ = self._entries
        return list(zip(ends, counts, strict=False))  # another thread may be adding one

    def resumed(self) -> Mapping[int, int]:
        """Return the start after a pause, by the end of the entry that follows it."""
        ends, _, begins = self._entries
        return {end: begin for end, begin in zip(ends, begins, strict=False) if begin}


def _append_entry(entries: MarkColumns, end_ns: int, count: int, begin_ns: int) -> None:
    for column, value in zip(entries, (end_ns, count, begin_ns), strict=True):
        column.append(value)


def _extend_entry(entries: MarkColumns, end_ns: int, count: int) -> None:
    entries[0][-1] = end_ns
    entries[1][-1] += count


def listen_to_stages(listener: StageListener) -> None:
    """Start to notify a listener of stages."""
    ACTIVE.listeners = (*ACTIVE.listeners, listener)


def ignore_stages(listener: StageListener) -> None:
    """Stop notifying a listener."""
    ACTIVE.listeners = tuple(each for each in ACTIVE.listeners if each is not listener)
