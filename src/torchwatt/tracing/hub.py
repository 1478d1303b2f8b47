"""The one place where torch is patched: wrappers go on with the first tracer and come off with the last."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from torchwatt.core.meter import Event
from torchwatt.tracing.log import BACKWARD, DATA, OPTIMIZER, Log
from torchwatt.tracing.patches import Patches, wrap_backward, wrap_call, wrap_timed
from torchwatt.tracing.registry import Registry
from torchwatt.tracing.window import Recorder, Window, clock_offset_ns, make_window

if TYPE_CHECKING:
    from torchwatt.tracing.pace import Pace

# What one recorded node adds to a backward pass, in ns (TRACING.md 2.1: 1.0-1.1 us per event).
NODE_NS = 1_100


class Hub:
    """Logs of all threads, the registry of modules, windows, and the patches that feed them."""

    def __init__(self) -> None:
        self.on = False
        self.local = threading.local()
        self.lock = threading.RLock()
        self.logs: list[Log] = []
        self.registry = Registry()
        self.scopes: list[str] = []
        self.windows: list[Window] = []
        self.events: list[Event] = []
        self.paces: list[tuple[int, Pace]] = []  # (thread, pace) of the tracers that want windows
        self._recorder: Recorder | None = None
        self._patches: Patches | None = None
        self._users = 0
        self._fork_watched = False
        self._said: set[str] = set()

    def enter(self) -> None:
        """Put the wrappers on for the first user."""
        with self.lock:
            self._users += 1
            if self._users == 1:
                self._install()

    def leave(self) -> None:
        """Take the wrappers off after the last user, and forget everything."""
        with self.lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users == 0:
                self._uninstall()

    def log(self) -> Log:
        """Return the calling thread's log."""
        found: Log | None = getattr(self.local, "log", None)
        if found is None:
            found = self.local.log = Log(threading.get_ident())
            with self.lock:
                self.logs.append(found)
        return found

    def say(self, severity: Any, code: str, message: str) -> None:
        """Add an event, once for each code."""
        if code not in self._said:
            self._said.add(code)
            self.events.append(Event(time.monotonic_ns(), severity, code, "trace", message))

    def scope_number(self, name: str) -> int:
        """Return the number of a scope's name."""
        with self.lock:
            if name not in self.scopes:
                self.scopes.append(name)
            return self.scopes.index(name)

    # --- windows -----------------------------------------------------------------------------------------------

    def open_window(self, log: Log) -> int:
        """Begin to record this thread's backward pass if it is due; return the cost so far in ns, -1 for no window."""
        pace = next((pace for thread, pace in reversed(self.paces) if thread == log.thread), None)
        if pace is None or self._recorder is None:
            return -1
        begun_ns = time.monotonic_ns()
        if not pace.due(begun_ns) or not log.whole:
            return -1
        if self._recorder.busy():
            message = "another profiler is running: backward passes are not looked into while it does"
            self.say("info", "PROFILER_BUSY", message)
            return -1
        try:
            self._recorder.open()
        except Exception as error:  # private API: no window is better than a broken training
            self._give_up(error)
            return -1
        return time.monotonic_ns() - begun_ns

    def close_window(self, log: Log, open_ns: int) -> int:
        """End recording; return the window's number, -1 if it was lost."""
        begun_ns = time.monotonic_ns()
        recorder = self._recorder
        if recorder is None:
            return -1
        try:
            nodes = recorder.close()
        except Exception as error:
            self._give_up(error)
            return -1
        pace = next(pace for thread, pace in reversed(self.paces) if thread == log.thread)
        cost_ns = open_ns + time.monotonic_ns() - begun_ns + NODE_NS * len(nodes)
        pace.paid(cost_ns)
        with self.lock:
            number = len(self.windows)
            self.windows.append(make_window(number, nodes, clock_offset_ns(), cost_ns))
        return number

    def _give_up(self, error: Exception) -> None:
        self._recorder = None
        message = f"this torch does not let backward passes be looked into ({type(error).__name__}: {error})"
        self.say("warning", "TRACE_UNSUPPORTED", message)

    # --- patches -----------------------------------------------------------------------------------------------

    def _install(self) -> None:
        import torch.utils.data.dataloader as loading
        from torch import autograd, nn
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        self._watch_forks()
        self.on = True
        self.events.clear()
        self._said.clear()
        try:
            self._recorder = Recorder()
        except Exception as error:
            self._give_up(error)
        patches = Patches()
        call = wrap_call(nn.Module.__call__, self)
        self.registry.wrapper_code = call.__code__
        patches.put(nn.Module, "__call__", call)
        patches.put(autograd, "_engine_run_backward", wrap_backward(autograd._engine_run_backward, self, BACKWARD))
        patches.put(
            loading._BaseDataLoaderIter, "__next__", wrap_timed(loading._BaseDataLoaderIter.__next__, self, DATA)
        )
        patches.put(loading.DataLoader, "__iter__", wrap_timed(loading.DataLoader.__iter__, self, DATA))
        patches.handles.append(register_optimizer_step_pre_hook(self._before_optimizer))
        patches.handles.append(register_optimizer_step_post_hook(self._after_optimizer))
        self._patches = patches

    def _uninstall(self) -> None:
        self.on = False
        if self._patches is not None:
            self._patches.undo()
        self._patches = self._recorder = None
        self.logs.clear()
        self.windows.clear()
        self.scopes.clear()
        self.paces.clear()
        self.registry = Registry()
        self.local = threading.local()

    def _before_optimizer(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.local.optimizer_ns = time.monotonic_ns()

    def _after_optimizer(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        end_ns = time.monotonic_ns()
        start_ns = getattr(self.local, "optimizer_ns", end_ns)
        self.log().append((OPTIMIZER, start_ns, end_ns, 0, 0, -1, id(optimizer)))

    # --- forks -------------------------------------------------------------------------------------------------

    def _watch_forks(self) -> None:
        if not self._fork_watched and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)
            self._fork_watched = True

    def _after_fork(self) -> None:
        """Trace nothing in a forked child: a DataLoader worker's modules are not this run's."""
        self.lock = threading.RLock()  # a thread that does not exist here may hold the old one
        if self._users:
            self._users = 0
            self._uninstall()


HUB = Hub()
