"""The one place that patches torch: logs of all threads, shared by every tracer that runs.

A process has one `nn.Module.__call__`, so there is at most one hub: made when the first tracer starts, gone,
with everything it patched and recorded, when the last one stops.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from torchwatt.core.meter import Event, Severity
from torchwatt.tracing.calibrate import calibrate
from torchwatt.tracing.conductor import Conductor
from torchwatt.tracing.log import Log
from torchwatt.tracing.outermost import outermost_keys, step_begin
from torchwatt.tracing.patches import Patches
from torchwatt.tracing.registry import Registry
from torchwatt.tracing.rows import COMPACT_ROWS, DATA_KEY, FIRST_SCOPE_KEY, FORCE_ROWS, FULL, LIGHT, OFF, OPTIMIZER_KEY
from torchwatt.tracing.state import ACTIVE
from torchwatt.tracing.windows import Windows
from torchwatt.tracing.wrappers import (
    Wrapped,
    backward_call,
    class_call,
    graph_task_id,
    module_call,
    sequence_nr,
    timed,
)

NOT_LOGGED = -1
FOLD_STEPS = 2_048  # not traced, between two folds

_guard = threading.RLock()


class Hub:
    """Patches and logs of the running tracers, and what their threads record at the moment."""

    def __init__(self, clock_ns: Callable[[], int], max_spans: int) -> None:
        self.clock_ns = clock_ns
        self.local = threading.local()
        self.registry = Registry()
        self.logs: list[Log] = []
        self.scopes: dict[str, int] = {}
        self.events: list[Event] = []
        self.conductors: list[Conductor] = []  # one a tracer; the outermost one's counts
        self.force_rows = min(FORCE_ROWS, max_spans)
        self.users = 0
        self.manual_steps = False
        self.off = False
        self.costs = calibrate(clock_ns)
        self.patches = Patches()
        self.windows = Windows(clock_ns, self.note)
        self._spent_ns = 0  # by tracers that have left
        self._tracing: set[Log] = set()  # threads that trace the step they are in
        self._arranging = threading.Lock()

    def install(self) -> None:
        """Put every wrapper in place, or none."""
        self.windows.warm_up()
        try:
            self.patches.add_module(module_call(self))
            self._patch(torch.autograd, "_engine_run_backward", backward_call(self))
            self._patch(_BaseDataLoaderIter, "__next__", timed(self, DATA_KEY))
            self._patch(DataLoader, "__iter__", timed(self, DATA_KEY))
            self.patches.keep(register_optimizer_step_pre_hook(self._optimizer_begins))
            self.patches.keep(register_optimizer_step_post_hook(self._optimizer_ended))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take everything off again; what others put on top of ours stays and finds ours inert."""
        self.off = True
        for log in list(self.logs):
            log.mode = OFF
        self.patches.remove()

    def forget(self) -> None:
        """Drop what was recorded, even if a wrapper of ours must stay below somebody else's."""
        for log in self.logs:
            log.clear()
        self.logs.clear()

    def log(self) -> Log:
        """Return this thread's log; a new thread gets a new one even if its ident was used before."""
        log: Log | None = getattr(self.local, "log", None)
        if log is None:
            log = self.local.log = Log(threading.get_ident(), self.clock_ns())
            if self.off:
                log.mode = OFF
                return log
            if self.logs and self.logs[0].mode == LIGHT:  # a helper of the first thread does as that does
                log.mode, log.stride.traced = LIGHT, False
            self.logs.append(log)
        return log

    def scope_key(self, name: str) -> int:
        """Return the key of a user's scope."""
        with _guard:
            return self.scopes.setdefault(name, FIRST_SCOPE_KEY - len(self.scopes))

    def scope_begins(self) -> tuple[Hub, Log, int, int, int]:
        """Open a range of the user; to be handed to `scope_ended`."""
        log, start = self.log(), self.clock_ns()
        if log.mode == LIGHT and log.inside:
            start = NOT_LOGGED  # what is inside an outermost call is filled in
        else:
            log.open_scopes.append(start)
        return self, log, sequence_nr(), graph_task_id(), start

    def scope_ended(self, name: str, begun: tuple[Hub, Log, int, int, int]) -> None:
        """Log a range of the user on the thread where it began."""
        _, log, seq, task, start = begun
        if start != NOT_LOGGED and log.mode != OFF:
            log.open_scopes.remove(start)
            last = sequence_nr() if log is self.log() else seq
            log.rows.append((self.scope_key(name), start, self.clock_ns(), seq, last, task))
            if len(log.rows) > self.force_rows:
                self.overflow(log)

    @property
    def conductor(self) -> Conductor | None:
        """Whose budget counts."""
        return self.conductors[0] if self.conductors else None

    def run_backward(self, original: Wrapped, args: Any, kwargs: Any) -> Any:
        """Run an outermost backward call and log it; some of them node by node."""
        log = self.log()
        log.stride.backwards += 1
        if self.registry.dirty:
            self.registry.refresh()
        fresh = log.total() > log.since()
        if not fresh and log.mode == LIGHT and sequence_nr() > log.stride.seq:
            self.look_closer()  # of a forward pass that nobody saw
            fresh = True
        try:
            return self.windows.run(self.conductor, log, original, args, kwargs)
        finally:
            log.stride.seq = sequence_nr()
            if fresh and log.first_optimizer is None and not self.manual_steps:
                self._next_step(log)

    def _optimizer_begins(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        log = self.log()
        if id(optimizer) not in self.registry.by_id:
            self.look_closer()
        key = self.registry.optimizer_key(optimizer)
        if log.first_optimizer is None:
            log.first_optimizer = key
        log.opened[key] = self.clock_ns()

    def _optimizer_ended(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        log, key, seq = self.log(), self.registry.optimizer_key(optimizer), sequence_nr()
        start, end = log.opened.pop(key, None), self.clock_ns()
        if start is not None:
            if not (log.inside and log.mode == LIGHT):
                log.rows.append((OPTIMIZER_KEY, start, end, seq, seq, graph_task_id()))
            log.mark(key, step_begin(log) if log.mode == LIGHT else start, end)
        if key == log.first_optimizer and not self.manual_steps:
            self.step_ended()

    def step_begin(self) -> int:
        """Return when the step of this thread began, as far as that will not be known later."""
        log = self.log()
        return step_begin(log) if log.mode == LIGHT else self.clock_ns()

    def step_ended(self) -> None:
        """Do what can wait until the end of a step: compact the log, find late modules, decide on the next step."""
        log = self.log()
        if len(log.rows) > COMPACT_ROWS:
            log.compact()
        if self.registry.dirty:
            self.registry.refresh()
        self._next_step(log)

    def outermost_begins(self, log: Log) -> None:
        """Take a call outside any other for a step where nothing else marks steps, or gradients are off."""
        stepless = log.first_optimizer is None and not log.backwards and not self.manual_steps
        if stepless or not torch.is_grad_enabled():
            log.inside = False
            self._next_step(log)
            log.inside = True

    def is_new_outermost(self, key: int) -> bool:
        """Say whether a module that was just registered is a root, and watch its class if so."""
        root = any(root.key == key for root in self.registry.roots)
        if root:
            self.watch(key)
            self.look_closer()
        return root

    def watch(self, key: int) -> None:
        """Patch the class of a module that is called outside any other."""
        kind = self.registry.class_of(key)
        if kind is not None:
            self.patches.watch(kind, lambda owner: class_call(self, owner))

    def begin(self, log: Log) -> None:
        """Decide what comes next on a thread: a session begins there."""
        conductor = self.conductor
        if conductor is None:
            return
        if len(self.conductors) > 1:
            self.look_closer()
            self._next_step(log)
        elif conductor.budget.share <= 0:
            log.mode, log.stride.traced = LIGHT, False

    def look_closer(self) -> None:
        """Something new begins: trace the next step, if there is room."""
        if self.conductor is not None:
            self.conductor.budget.curious = True

    def leave(self, conductor: Conductor) -> None:
        """Take a tracer's books away."""
        if conductor in self.conductors:
            self._spent_ns += conductor.budget.total_ns
            self.conductors.remove(conductor)

    def spent_ns(self) -> int:
        """Return what tracing has cost since the hub began, all threads together."""
        booked = self._spent_ns + sum(conductor.budget.total_ns for conductor in self.conductors)
        open_rows = sum(log.total() - log.stride.first_row for log in list(self.logs))
        return booked + round(open_rows * self.costs.call_ns)

    def _next_step(self, log: Log) -> None:
        conductor = self.conductor
        if conductor is None or log.mode == OFF or log.inside:
            return
        began = self.clock_ns()
        kept = sum(each.total() for each in list(self.logs))
        was_full = log.mode == FULL
        traced = conductor.step_ended(log.stride, began, log.total(), kept)
        log.mode = FULL if traced else LIGHT
        if was_full and not traced:
            for key in outermost_keys(log.rows):
                self.watch(key)
        if conductor.limited:
            self.note("info", "SPANS_SAMPLED", conductor.limit.message)
        self._arrange(log, conductor)
        if log.stride.light_steps >= FOLD_STEPS and graph_task_id() < 0:
            self._fold(log)
        conductor.budget.pay("fixed", self.clock_ns() - began)

    def _fold(self, log: Log) -> None:
        log.stride.light_steps = 0
        if log.fold(self.clock_ns()) > 1:
            text = "of steps that were not traced only sums over neighbouring steps are kept"
            self.note("info", "STEPS_FOLDED", text)

    def _arrange(self, log: Log, conductor: Conductor) -> None:
        """Have the wrapper of all modules in place if and only if somebody needs it."""
        (self._tracing.add if log.mode == FULL else self._tracing.discard)(log)
        wanted = bool(self._tracing) or not conductor.narrow
        if wanted == self.patches.module_is_on:
            return
        with self._arranging:
            began = self.clock_ns()
            if wanted:
                self.patches.put_module()
            elif not self.patches.take_module():
                conductor.can_narrow = False
            conductor.costs.swap_ns = 2.0 * (self.clock_ns() - began)

    def overflow(self, log: Log) -> None:
        """Compact a log that no step end has compacted, if possible between outermost calls."""
        outside = not self.registry.enclosed(sys._getframe(1))
        if outside or len(log.rows) > 2 * self.force_rows:
            log.compact()
        if outside:
            self._next_step(log)
            self._fold(log)

    def note(self, severity: Severity, code: str, message: str) -> None:
        """Record an event, each code once."""
        if all(event.code != code for event in self.events):
            self.events.append(Event(self.clock_ns(), severity, code, "run", message))

    def _patch(self, owner: Any, name: str, wrap: Callable[[Wrapped], Wrapped]) -> None:
        if not self.patches.add(owner, name, wrap):
            self.note("warning", "TRACE_UNSUPPORTED", f"torch {torch.__version__} lacks {name}")


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
