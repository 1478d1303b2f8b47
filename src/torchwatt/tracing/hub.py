"""The one place that patches torch: logs of all threads, shared by every tracer that runs.

A process has one `nn.Module.__call__`, so there is at most one hub: made when the first tracer starts, gone,
with everything it patched and recorded, when the last one stops.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from torchwatt.core.meter import Event, Severity
from torchwatt.tracing import kineto
from torchwatt.tracing.log import COMPACT_ROWS, DATA_KEY, FIRST_SCOPE_KEY, FORCE_ROWS, OPTIMIZER_KEY, Backward, Log
from torchwatt.tracing.pacing import Pacer
from torchwatt.tracing.patch import Patch
from torchwatt.tracing.registry import Registry
from torchwatt.tracing.sampling import Sampling
from torchwatt.tracing.state import ACTIVE
from torchwatt.tracing.wrappers import (
    FULL,
    LIGHT,
    OFF,
    Mode,
    Wrapped,
    backward_call,
    calibrate,
    graph_task_id,
    module_call,
    sequence_nr,
    timed,
)

COLD_FACTOR = 2.0  # a call in a training step against one in the calibration loop (TRACING.md, 2.1)

_guard = threading.RLock()


class Hub:
    """Patches, logs and windows of the running tracers."""

    def __init__(self, clock_ns: Callable[[], int], max_spans: int) -> None:
        self.clock_ns = clock_ns
        self.mode = Mode()
        self.local = threading.local()
        self.registry = Registry()
        self.logs: list[Log] = []
        self.scopes: dict[str, int] = {}
        self.events: list[Event] = []
        self.pacers: list[Pacer] = []
        self.sampling = Sampling(max_spans)
        self.force_rows = min(FORCE_ROWS, max_spans)
        self.users = 0
        self.manual_steps = False
        self._first_optimizer: int | None = None
        self._broken = False
        self._patches: list[Patch] = []
        self._handles: list[Any] = []
        self.call_cost_ns = COLD_FACTOR * calibrate(module_call, clock_ns)

    def install(self) -> None:
        """Put every wrapper in place, or none."""
        problem = kineto.missing()
        if problem:
            self._broken = True
            self.note("warning", "TRACE_UNSUPPORTED", f"torch {torch.__version__} lacks {problem}: no backward layers")
        try:
            self._patch(torch.nn.Module, "__call__", module_call(self))
            self._patch(torch.autograd, "_engine_run_backward", backward_call(self))
            self._patch(_BaseDataLoaderIter, "__next__", timed(self, DATA_KEY))
            self._patch(DataLoader, "__iter__", timed(self, DATA_KEY))
            self._handles.append(register_optimizer_step_pre_hook(self._optimizer_begins))
            self._handles.append(register_optimizer_step_post_hook(self._optimizer_ended))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take everything off again; what others put on top of ours stays and finds ours inert."""
        self.mode.value = OFF
        for handle in self._handles:
            handle.remove()
        for patch in reversed(self._patches):
            patch.remove()
        self._handles.clear()
        self._patches.clear()

    def forget(self) -> None:
        """Drop what was recorded, even if a wrapper of ours must stay below somebody else's."""
        for log in self.logs:
            log.clear()
        self.logs.clear()

    def log(self) -> Log:
        """Return this thread's log; a new thread gets a new one even if its ident was used before."""
        log: Log | None = getattr(self.local, "log", None)
        if log is None:
            log = self.local.log = Log(threading.get_ident())
            self.logs.append(log)
        return log

    def scope_key(self, name: str) -> int:
        """Return the key of a user's scope."""
        with _guard:
            return self.scopes.setdefault(name, FIRST_SCOPE_KEY - len(self.scopes))

    def scope_begins(self) -> tuple[Hub, Log, int, int, int]:
        """Open a range of the user; to be handed to `scope_ended`."""
        return self, self.log(), sequence_nr(), graph_task_id(), self.clock_ns()

    def scope_ended(self, name: str, begun: tuple[Hub, Log, int, int, int]) -> None:
        """Log a range of the user on the thread where it began."""
        _, log, seq, task, start = begun
        if self.mode.value != OFF:
            last = sequence_nr() if log is self.log() else seq
            log.rows.append((self.scope_key(name), start, self.clock_ns(), seq, last, task))
            if len(log.rows) > self.force_rows:
                self.overflow(log)

    def note(self, severity: Severity, code: str, message: str) -> None:
        """Record an event, each code once."""
        if all(event.code != code for event in self.events):
            self.events.append(Event(self.clock_ns(), severity, code, "run", message))

    def run_backward(self, original: Wrapped, args: Any, kwargs: Any) -> Any:
        """Run an outermost backward call and log it; some of them node by node."""
        log = self.log()
        first = log.total()
        if self.registry.dirty:
            self.registry.refresh()
        kind = _kind(log, first)
        window = self._open_window(kind)
        start = self.clock_ns()
        try:
            return original(*args, **kwargs)
        finally:
            end = self.clock_ns()
            call = Backward(start, end, first, log.total(), self.mode.value == LIGHT)
            if window is not None:
                self._close_window(window, kind, call)
            log.backwards.append(call)

    def _open_window(self, kind: Hashable) -> kineto.Window | None:
        pacer = self.pacers[0] if self.pacers else None
        if pacer is None or self._broken or self.mode.value != FULL:
            return None
        try:
            if not pacer.wants(kind, self.clock_ns()):
                return None
            if kineto.user_is_profiling():
                self.note("info", "PROFILER_BUSY", "another profiler was running: its backward calls have no window")
                return None
            window = kineto.Window(self.clock_ns)
            return window if window.open() else None
        except Exception as error:
            self._give_up(error)
            return None

    def _close_window(self, window: kineto.Window, kind: Hashable, call: Backward) -> None:
        try:
            call.nodes = window.close()
            call.cost_ns = window.cost_ns
            if self.pacers:
                self.pacers[0].paid(kind, window.cost_ns)
            if call.nodes is None:
                self.note("info", "CLOCK_STEPPED", "the wall clock was set during a window: window dropped")
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        # A private interface of torch misbehaves: the user's backward goes on, without windows.
        self._broken = True
        self.note("warning", "WINDOW_FAILED", f"backward windows stopped: {type(error).__name__}: {error}")

    def _optimizer_begins(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        key = self.registry.optimizer_key(optimizer)
        if self._first_optimizer is None:
            self._first_optimizer = key
        self.log().opened[key] = self.clock_ns()

    def _optimizer_ended(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        log, key, seq = self.log(), self.registry.optimizer_key(optimizer), sequence_nr()
        start, end = log.opened.pop(key, None), self.clock_ns()
        if start is not None:
            log.rows.append((OPTIMIZER_KEY, start, end, seq, seq, graph_task_id()))
            log.steps.append((end, start, key))
        if key == self._first_optimizer and not self.manual_steps:
            self.step_ended()

    def step_ended(self) -> None:
        """Do what can wait until the end of a step: compact the log, find late modules, sample."""
        log = self.log()
        if len(log.rows) > COMPACT_ROWS:
            log.compact()
        if self.registry.dirty:
            self.registry.refresh()
        self._pace()

    def root_begins(self) -> bool:
        """Say, in light mode, whether to trace this outermost call in full: without steps, each counts as one."""
        if self._first_optimizer is None and not self.manual_steps:
            self._pace()
        return self.mode.value == FULL

    def root_done(self) -> None:
        """Go back to light mode after such a call."""
        if self.mode.value == FULL:
            self.mode.value = LIGHT

    def overflow(self, log: Log) -> None:
        """Compact a log that no step end has compacted, if possible between outermost calls."""
        outside = not self.registry.enclosed(sys._getframe(1))
        if outside or len(log.rows) > 2 * self.force_rows:
            log.compact()
        if outside:
            self._pace()

    def _pace(self) -> None:
        if self.mode.value == OFF:
            return
        light = self.sampling.after_step(sum(log.total() for log in list(self.logs)))
        if light:
            self.note("info", "SPANS_SAMPLED", self.sampling.message)
        self.mode.value = LIGHT if light else FULL

    def _patch(self, owner: Any, name: str, wrap: Callable[[Wrapped], Wrapped]) -> None:
        if hasattr(owner, name):
            self._patches.append(Patch(owner, name, wrap))
        else:
            self.note("warning", "TRACE_UNSUPPORTED", f"torch {torch.__version__} lacks {name}")


def _kind(log: Log, first: int) -> Hashable:
    """Tell apart, cheaply, backward calls of different models or losses; exact structure comes later."""
    before = log.backwards[-1].last if log.backwards else 0
    return first - before, log.rows[-1][0] if log.rows else 0


def acquire(clock_ns: Callable[[], int], max_spans: int) -> Hub:
    """Return the running hub, or start one."""
    with _guard:
        hub = ACTIVE.hub
        if hub is None:
            hub = Hub(clock_ns, max_spans)
            hub.install()
            ACTIVE.hub = hub
            _forks.watch()
        hub.users += 1
        return hub


def release(hub: Hub) -> None:
    """Leave a hub; the last one to leave takes everything off."""
    with _guard:
        hub.users -= 1
        if hub.users <= 0:
            hub.remove()
            hub.forget()
            if ACTIVE.hub is hub:
                ACTIVE.hub = None


class _Forks:
    """A forked child (a DataLoader worker) inherits our patches: take them off there."""

    def __init__(self) -> None:
        self._watching = False

    def watch(self) -> None:
        if not self._watching and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._in_child)
            self._watching = True

    def _in_child(self) -> None:
        global _guard  # noqa: PLW0603 - the parent's lock may be held by a thread that does not exist here
        _guard = threading.RLock()
        hub, ACTIVE.hub = ACTIVE.hub, None
        if hub is not None:
            hub.remove()


_forks = _Forks()
