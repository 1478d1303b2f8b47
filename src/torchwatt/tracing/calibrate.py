"""Measure what the module wrapper costs on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torchwatt.tracing.conductor import Costs
from torchwatt.tracing.log import Log
from torchwatt.tracing.margins import measure
from torchwatt.tracing.own_time import own_time
from torchwatt.tracing.quiet import Quiet
from torchwatt.tracing.rows import LIGHT, UNKNOWN_KEY
from torchwatt.tracing.signatures import Signatures
from torchwatt.tracing.wrappers import Wrapped, module_call

LOOPS, CALLS = 3, 200
own_ns = own_time()
LEAST_NS = 100.0  # time of two clock readings: a lower result is a disturbed measurement


class _Registry:
    def __init__(self) -> None:
        self.by_id: dict[int, int] = {}
        self.calls_code: frozenset[Any] = frozenset()

    def register(self, _module: object) -> int:
        return UNKNOWN_KEY


class _Bench:
    """The part of a hub that the wrapper uses."""

    force_rows = 10**6
    off = False

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.clock_ns = clock_ns
        self.local = threading.local()
        self.registry = _Registry()
        self.local.log = Log(0)
        self.quiet = Quiet()
        self.signatures = Signatures(self.registry.by_id.get)

    def log(self) -> Log:
        log: Log = self.local.log
        return log

    def overflow(self, log: Log) -> None:
        """Do nothing."""

    outermost_begins = overflow

    def is_new_outermost(self, _key: int) -> bool:
        return False


class _NoModule:
    """A stand-in for a module."""


def calibrate(clock_ns: Callable[[], int]) -> Costs:
    """Measure the cost of logging and of passing a call, in a loop, in under 2 ms; training has colder caches."""

    def nothing(_self: Any) -> None:
        pass

    module, bench = _NoModule(), _Bench(clock_ns)
    bench.registry.by_id[id(module)] = UNKNOWN_KEY
    wrapped = module_call(bench)(nothing)  # type: ignore[arg-type]  # no more than the wrapper uses
    call_ns = _excess(wrapped, nothing, module)
    log = bench.log()
    log.mode, log.inside = LIGHT, True
    return Costs(call_ns, _excess(wrapped, nothing, module), in_a_loop=True, margins=measure())


def _excess(wrapped: Wrapped, plain: Wrapped, module: Any) -> float:
    least = min(_loop(wrapped, module) for _ in range(LOOPS)) - min(_loop(plain, module) for _ in range(LOOPS))
    return max(least, LEAST_NS)


def _loop(function: Wrapped, module: Any) -> float:
    start = own_ns()  # thread CPU time: other threads that hold the interpreter lock do not count
    for _ in range(CALLS):
        function(module)
    return (own_ns() - start) / CALLS
