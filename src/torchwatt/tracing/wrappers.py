"""What runs in the user's thread: the wrappers around module calls, backward calls and data loading.

Every line of `module_call` is paid for at each call of each module. All of them pass straight through under
torch.compile (no graph break) and when the session is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

from torchwatt.tracing.log import LIGHT_TASK, UNKNOWN_KEY, Log
from torchwatt.tracing.registry import Registry

FULL, LIGHT, OFF = 0, 1, 2

Wrapped = Callable[..., Any]


def _zero() -> int:
    return 0


def _outside() -> int:
    return -1


sequence_nr: Callable[[], int] = getattr(torch._C._autograd, "_get_sequence_nr", _zero)
graph_task_id: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", _outside)


class Mode:
    """What the wrappers do at the moment: trace all calls, the outermost ones, or nothing."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = FULL


class Host(Protocol):
    """What the wrappers need of the hub."""

    mode: Mode
    local: threading.local
    registry: Registry
    clock_ns: Callable[[], int]
    force_rows: int  # longest list of tuples before it is compacted in mid-step

    def log(self) -> Log:
        """Return this thread's log."""

    def run_backward(self, original: Wrapped, args: Any, kwargs: Any) -> Any:
        """Run an outermost backward call, possibly in a window."""

    def overflow(self, log: Log) -> None:
        """Make room: a log has grown too long outside a step's end."""

    def root_begins(self) -> bool:
        """Say, in light mode, whether this outermost call is to be traced in full, and switch over."""

    def root_done(self) -> None:
        """Switch back."""


def module_call(host: Host) -> Callable[[Wrapped], Wrapped]:
    """Return the wrapper of `nn.Module.__call__`: one tuple a call, also when the call raises."""
    compiling, mode, local, new_log = torch.compiler.is_compiling, host.mode, host.local, host.log
    clock, seq, task = host.clock_ns, sequence_nr, graph_task_id
    key_of, register = host.registry.by_id.get, host.registry.register
    overflow, force_rows = host.overflow, host.force_rows

    def wrap(original: Wrapped) -> Wrapped:
        outermost = _outermost(host, original)

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            if compiling():
                return original(self, *args, **kwargs)
            if mode.value:
                return outermost(__call__, self, args, kwargs)
            try:
                log = local.log
            except AttributeError:
                log = new_log()
            key = key_of(id(self))
            if key is None:
                key = register(self)
            rows, graph = log.rows, task()
            s0, start = seq(), clock()
            try:
                return original(self, *args, **kwargs)
            finally:
                rows.append((key, start, clock(), s0, seq(), graph))
                if len(rows) > force_rows:
                    overflow(log)

        host.registry.calls_code = frozenset((__call__.__code__, outermost.__code__))
        return __call__

    return wrap


def _outermost(host: Host, original: Wrapped) -> Wrapped:
    """Return what a module call does in light mode."""
    registry, mode, clock = host.registry, host.mode, host.clock_ns

    def outermost(full: Wrapped, module: Any, args: Any, kwargs: Any) -> Any:
        log = host.log()
        if mode.value == OFF or log.inside or graph_task_id() >= 0:
            return original(module, *args, **kwargs)
        if host.root_begins():  # traced in full after all
            try:
                return full(module, *args, **kwargs)
            finally:
                host.root_done()
        key = registry.by_id.get(id(module)) or registry.register(module)
        log.inside = True
        s0, start = sequence_nr(), clock()
        try:
            return original(module, *args, **kwargs)
        finally:
            log.rows.append((key, start, clock(), s0, sequence_nr(), LIGHT_TASK))
            log.inside = False

    return outermost


def backward_call(host: Host) -> Callable[[Wrapped], Wrapped]:
    """Return the wrapper of the function behind `backward()` and `autograd.grad()`."""
    compiling, mode, task = torch.compiler.is_compiling, host.mode, graph_task_id

    def wrap(original: Wrapped) -> Wrapped:
        def _engine_run_backward(*args: Any, **kwargs: Any) -> Any:
            # Inside another backward (checkpoint) it belongs to the outer one.
            if compiling() or mode.value == OFF or task() >= 0:
                return original(*args, **kwargs)
            return host.run_backward(original, args, kwargs)

        return _engine_run_backward

    return wrap


def timed(host: Host, key: int) -> Callable[[Wrapped], Wrapped]:
    """Return a wrapper that books each call to a reserved key."""
    compiling, mode, clock = torch.compiler.is_compiling, host.mode, host.clock_ns

    def wrap(original: Wrapped) -> Wrapped:
        def call(*args: Any, **kwargs: Any) -> Any:
            if compiling() or mode.value == OFF:
                return original(*args, **kwargs)
            log, s0, start = host.log(), sequence_nr(), clock()
            try:
                return original(*args, **kwargs)
            finally:
                log.rows.append((key, start, clock(), s0, sequence_nr(), graph_task_id()))

        return call

    return wrap


class NoModule:
    """Stands in for a module in the calibration."""


def calibrate(make: Callable[[Any], Callable[[Wrapped], Wrapped]], clock_ns: Callable[[], int]) -> float:
    """Measure what the module wrapper costs per call, in ns; takes under 2 ms.

    A hot loop is kinder than a training step, where the wrapper finds cold caches; TRACING.md measured 2 to
    2.5 us there against 0.6 to 1.0 us here, so the caller doubles it.
    """

    class Bench:
        mode, local, registry, force_rows = Mode(), threading.local(), Registry(), 10**6
        overflow = root_begins = root_done = run_backward = staticmethod(lambda *_: None)

        def __init__(self) -> None:
            self.clock_ns = clock_ns
            self._log = Log(0)

        def log(self) -> Log:
            self.local.log = self._log
            return self._log

    def nothing(_self: Any) -> None:
        pass

    module, bench = NoModule(), Bench()
    bench.registry.by_id[id(module)] = UNKNOWN_KEY
    wrapped = make(bench)(nothing)
    return max(min(_loop(wrapped, module) - _loop(nothing, module) for _ in range(3)), 0.0)


def _loop(function: Wrapped, module: Any, n: int = 200) -> float:
    import time

    start = time.perf_counter_ns()
    for _ in range(n):
        function(module)
    return (time.perf_counter_ns() - start) / n
