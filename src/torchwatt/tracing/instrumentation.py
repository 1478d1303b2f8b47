"""Patch torch and keep the logs of all threads, shared by all running tracers.

A process has one `nn.Module.__call__`, so there is at most one hub: made when the first tracer starts, removed, with
all its patches and logs, when the last one stops.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from torchwatt.core.meter import Event, Severity
from torchwatt.tracing.autograd_recorder import measure_margins
from torchwatt.tracing.backward_calls import (
    BackwardWindows,
    backward_call,
    find_collectives,
    find_reducers,
    time_calls,
    wrap_reducer,
)
from torchwatt.tracing.compile_monitor import CompileMonitor
from torchwatt.tracing.compiled_calls import CompiledCalls, wrap_functional
from torchwatt.tracing.device_profiler import DeviceProfiler
from torchwatt.tracing.fast_path import FastPath, optimizer_hooks
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    DATA_KEY,
    FORCE_ROWS,
    OFF,
    OUTERMOST,
    UNKNOWN_KEY,
    SignatureTable,
)
from torchwatt.tracing.module_operations import ShapeReader, read_plain
from torchwatt.tracing.module_registry import ModuleRegistry
from torchwatt.tracing.module_wrappers import class_call, module_call
from torchwatt.tracing.named_parts import NamedParts
from torchwatt.tracing.overhead_budget import ThreadEndMarker, thread_clock
from torchwatt.tracing.patches import Patches, Wrapped, step_hooks
from torchwatt.tracing.scope import ACTIVE
from torchwatt.tracing.step_controller import StepController
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.tracing_policy import TracingCosts

LOOPS, CALLS = 3, 200
own_ns = thread_clock()
LEAST_NS = 100.0  # time of two clock readings: a lower result is a disturbed measurement


class _BenchRegistry:
    def __init__(self) -> None:
        self.by_id: dict[int, int] = {}
        self.calls_code: frozenset[Any] = frozenset()
        self.readers: dict[int, ShapeReader] = {}

    def register(self, _module: object) -> int:
        return UNKNOWN_KEY


class _WrapperBench:
    """The part of a hub that the wrapper uses."""

    force_rows = 10**6
    off = False

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.clock_ns = clock_ns
        self.local = threading.local()
        self.registry = _BenchRegistry()
        self.local.log = ThreadLog(0)
        self.quiet = FastPath()
        self.signatures = SignatureTable(self.registry.by_id.get)

    def log(self) -> ThreadLog:
        log: ThreadLog = self.local.log
        return log

    def overflow(self, log: ThreadLog) -> None:
        """Do nothing."""

    outermost_begins = overflow

    def is_new_outermost(self, _key: int) -> bool:
        return False


def calibrate_wrappers(clock_ns: Callable[[], int]) -> TracingCosts:
    """Measure the cost of logging and of passing a call, in a loop, in under 2 ms; training has colder caches."""
    x = torch.empty((1, 1), device="cpu")
    # Not initialised: the user's random numbers stay as they are.
    module: Any = torch.nn.Linear.__new__(torch.nn.Linear)
    vars(module)["_parameters"] = {"weight": x}

    def nothing(_self: Any, x: Any) -> Any:
        return x

    bench = _WrapperBench(clock_ns)
    bench.registry.by_id[id(module)] = UNKNOWN_KEY
    wrapped = module_call(bench)(nothing)  # type: ignore[arg-type]  # no more than the wrapper uses
    call_ns = _excess_ns(wrapped, nothing, module, x)
    log = bench.log()
    bench.registry.readers[UNKNOWN_KEY] = read_plain
    shapes_factor = max(_excess_ns(wrapped, nothing, module, x) / call_ns, 1.0)
    log.mode, log.inside = OUTERMOST, True
    passing_ns = _excess_ns(wrapped, nothing, module, x)
    return TracingCosts(call_ns, passing_ns, shapes_factor=shapes_factor, in_a_loop=True, margins=measure_margins())


def _excess_ns(wrapped: Wrapped, plain: Wrapped, module: Any, x: Any) -> float:
    with_ns, without_ns = (min(_time_loop(each, module, x) for _ in range(LOOPS)) for each in (wrapped, plain))
    return max(with_ns - without_ns, LEAST_NS)


def _time_loop(function: Wrapped, module: Any, x: Any) -> float:
    start = own_ns()  # thread CPU time: other threads that hold the interpreter lock do not count
    for _ in range(CALLS):
        function(module, x)
    return (own_ns() - start) / CALLS


_lock = threading.RLock()


class Instrumentation:
    """Patches and logs of the running tracers, and what each thread records at present."""

    def __init__(self, clock_ns: Callable[[], int], max_spans: int) -> None:
        self.clock_ns = clock_ns
        self.local = threading.local()
        self.quiet = FastPath()
        self.registry = ModuleRegistry(self._forgotten)
        self.signatures = SignatureTable(self.registry.by_id.get)
        self.logs: list[ThreadLog] = []
        self.named = NamedParts(self)
        self.scope_key = self.named.scope_key
        self.events: list[Event] = []
        self.force_rows = min(FORCE_ROWS, max_spans)
        self.users = 0
        self.manual_steps = False
        self.off = False
        self.costs = calibrate_wrappers(clock_ns)
        self.patches = Patches()
        self._collectives: set[tuple[int, str]] = set()  # wrapped ones, by owner and name
        self._watched: dict[int, bool] = {}  # by key of a module, whether its class is patched
        self.windows = BackwardWindows(clock_ns, self.note)
        self.devices: DeviceProfiler | None = None
        self._new_watch: Callable[[Instrumentation], DeviceProfiler] | None = None
        self.stepping = StepController(self)
        self.step_ended = self.stepping.step_ended
        self.earlier_step_ended = self.stepping.earlier_step_ended
        self.look_closer = self.stepping.look_closer
        self.decide_if_due = self.stepping.decide_if_due
        self.compile_watch = CompileMonitor(self)
        self.compiled_calls = CompiledCalls(self)
        self.compile_watch.when_imported(self.compiled_calls.attach)

    def install(self) -> None:
        """Install every wrapper, or none."""
        self.windows.warm_up()
        try:
            self.patches.add_module(module_call(self))
            self._patch(torch.autograd, "_engine_run_backward", backward_call(self))
            self._patch(_BaseDataLoaderIter, "__next__", time_calls(self, DATA_KEY))
            self._patch(DataLoader, "__iter__", time_calls(self, DATA_KEY))
            for owner, name in find_reducers():
                self.patches.add(owner, name, wrap_reducer(self))
            self._time_collectives()
            wrap_functional(self, self.patches)
            for hook in step_hooks(*optimizer_hooks(self)):
                self.patches.keep(hook)
            self.compile_watch.start()
        except BaseException:
            self.remove()
            raise

    def _time_collectives(self) -> None:
        """Wrap collectives that are not wrapped yet: FSDP may be imported after profiling began."""
        for owner, name, key in find_collectives():
            if (id(owner), name) not in self._collectives and self.patches.add(owner, name, time_calls(self, key)):
                self._collectives.add((id(owner), name))

    def remove(self) -> None:
        """Remove all patches; a wrapper below another library's wrapper stays in place and passes calls through."""
        self.off = True
        self.quiet.alone, self.quiet.asleep, self.quiet.inside = False, 0, 0
        for log in list(self.logs):
            log.mode = OFF
        self.compile_watch.remove()
        self.patches.remove()
        if self.devices is not None:
            self.devices.close()
        self.devices = self.windows.devices = None

    def expect_cuda(self, new_watch: Callable[[Instrumentation], DeviceProfiler]) -> None:
        """Record devices as soon as the program has initialised CUDA.

        A mere query for devices would fix which ones the program sees, and prevent it from forking workers that use
        them.
        """
        self._new_watch = new_watch
        self.watch_cuda()

    def watch_cuda(self) -> None:
        """Start recording devices if CUDA is initialised."""
        if self._new_watch is not None and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            new_watch, self._new_watch = self._new_watch, None
            self.watch_devices(new_watch(self))

    def watch_devices(self, devices: DeviceProfiler) -> None:
        """Start recording devices."""
        devices.attach(self.logs, self.named)
        self.devices = self.windows.devices = devices

    def forget(self) -> None:
        """Drop all logs, even if a wrapper must stay below another one."""
        for log in self.logs:
            log.clear()
        self.logs.clear()

    def log(self) -> ThreadLog:
        """Return this thread's log; a new thread gets a new one even if its ident was used before."""
        try:
            log: ThreadLog = self.local.log
        except AttributeError:
            return self._new_log()
        return log

    def _new_log(self) -> ThreadLog:
        log = self.local.log = ThreadLog(threading.get_ident(), self.clock_ns())
        self.local.at_end = ThreadEndMarker(log.cpu)
        if self.off:
            log.mode = OFF
            return log
        if self.logs and self.logs[0].mode != ALL_CALLS:  # a thread started later begins in the first thread's mode
            log.mode = log.stride.mode = OUTERMOST
        self.logs.append(log)
        main = threading.current_thread() is threading.main_thread()  # another thread may end, and its ident be reused
        self.quiet.alone, self.quiet.asleep = main and len(self.logs) == 1, 0
        if self.quiet.alone:
            self.quiet.ends = log.noted
        return log

    @property
    def scopes(self) -> dict[str, int]:
        """Return the key of each of the user's scopes, by name."""
        return self.named.scopes

    def overflow(self, log: ThreadLog) -> None:
        """Compact a log that grew without an end of a step, if possible between outermost calls."""
        outside = not self.registry.enclosed(sys._getframe(1))
        if outside or len(log.rows) > 2 * self.force_rows:
            log.compact()
        if outside:
            self.stepping.decide(log)

    def outermost_begins(self, log: ThreadLog) -> None:
        """Handle the start of an outermost call: a step where nothing else marks steps, or without gradients."""
        self.stepping.outermost_begins(log)

    def outermost_ended(self, log: ThreadLog) -> None:
        """Handle the end of an outermost call that may be a step."""
        self.stepping.outermost_ended(log)

    def run_backward(self, began_ns: int, original: Wrapped, args: Any, kwargs: Any) -> Any:
        """Run an outermost backward call of a traced step, possibly in a window; profiler work began before."""
        log = self.log()
        if self.registry.dirty:
            self.registry.refresh()
        return self.windows.run(self.stepping.conductor, log, began_ns, original, args, kwargs)

    def backward_ended(self, log: ThreadLog, *, fresh: bool) -> None:
        """Handle the end of a backward call: the end of a step if no optimizer ends steps."""
        self.stepping.backward_ended(log, fresh=fresh)

    def is_new_outermost(self, key: int) -> bool:
        """Return whether a newly registered module is a root, and patch its class if so."""
        root = any(root.key == key for root in self.registry.roots)
        if root:
            self._time_collectives()
            self.watch_cuda()
            self.watch(key)
            self.look_closer()
        return root

    def watch(self, key: int) -> None:
        """Patch the class of a module."""
        kind = self.registry.class_of(key)
        if kind is not None and self.patches.watch(kind, lambda owner: class_call(self, owner)):
            self._watched.clear()

    def _forgotten(self) -> None:
        """Invalidate ids: a module or an optimizer was freed, and its id may be reused."""
        self.quiet.stir()
        self.signatures.forget()

    def watches(self, key: int) -> bool:
        """Return whether the class of a module is patched."""
        is_patched = self._watched.get(key)
        if is_patched is None:
            kind = self.registry.class_of(key)
            is_patched = self._watched[key] = kind is not None and self.patches.watched((kind,))
        return is_patched

    def note(self, severity: Severity, code: str, message: str) -> None:
        """Record an event, once per code."""
        if all(event.code != code for event in self.events):
            self.events.append(Event(self.clock_ns(), severity, code, "run", message))

    def _patch(self, owner: Any, name: str, wrap: Callable[[Wrapped], Wrapped]) -> None:
        if not self.patches.add(owner, name, wrap):
            self.note("warning", "TRACE_UNSUPPORTED", f"torch {torch.__version__} lacks {name}")


def acquire_instrumentation(clock_ns: Callable[[], int], max_spans: int) -> Instrumentation:
    """Return the running hub, or start one."""
    with _lock:
        hub = cast("Instrumentation | None", ACTIVE.hub)
        if hub is None:
            hub = Instrumentation(clock_ns, max_spans)
            hub.install()
            ACTIVE.hub = hub
            _fork_cleanup.watch()
        hub.users += 1
        return hub


def release_instrumentation(hub: Instrumentation) -> None:
    """Leave a hub; the last tracer to leave removes it."""
    with _lock:
        hub.users -= 1
        if hub.users <= 0:
            hub.remove()
            hub.forget()
            if ACTIVE.hub is hub:
                ACTIVE.hub = None


class _ForkCleanup:
    """Remove the inherited patches in a forked child (a DataLoader worker)."""

    def __init__(self) -> None:
        self._watching = False

    def watch(self) -> None:
        if not self._watching and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._in_child)
            self._watching = True

    def _in_child(self) -> None:
        global _lock  # noqa: PLW0603 - the parent's lock may be held by a thread that does not exist here
        _lock = threading.RLock()
        hub, ACTIVE.hub = cast("Instrumentation | None", ACTIVE.hub), None
        if hub is not None:
            hub.patches.renew_lock()
            hub.remove()


_fork_cleanup = _ForkCleanup()
