"""What the module wrapper costs on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from torchwatt.tracing.conductor import Costs
from torchwatt.tracing.log import Log
from torchwatt.tracing.rows import LIGHT, UNKNOWN_KEY
from torchwatt.tracing.wrappers import Quiet, Wrapped, module_call

# A call in a training step against one in the calibration loop (benchmarks/in_place.py): 4.0 to 4.3 times as dear
# between matrix products that fill the caches, 2.6 where there is next to nothing to compute.
COLD_FACTOR = 4.0
LOOPS, CALLS = 3, 200
LEAST_NS = 100.0  # reading the clock twice takes that long: less is a disturbed measurement


class _Registry:
    def __init__(self) -> None:
        self.by_id: dict[int, int] = {}
        self.calls_code: frozenset[Any] = frozenset()

    def register(self, _module: object) -> int:
        return UNKNOWN_KEY


class _Bench:
    """As much of a hub as the wrapper needs."""

    force_rows = 10**6

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.clock_ns = clock_ns
        self.local = threading.local()
        self.quiet = Quiet()
        self.registry = _Registry()
        self.local.log = Log(0)

    def log(self) -> Log:
        log: Log = self.local.log
        return log

    def overflow(self, log: Log) -> None:
        """Never needed here."""

    outermost_begins = overflow

    def is_new_outermost(self, _key: int) -> bool:
        return False


class _NoModule:
    """Stands in for a module."""


def calibrate(clock_ns: Callable[[], int]) -> Costs:
    """Measure what logging a call and letting one pass cost, in under 2 ms; a training step finds colder caches."""

    def nothing(_self: Any) -> None:
        pass

    module, bench = _NoModule(), _Bench(clock_ns)
    bench.registry.by_id[id(module)] = UNKNOWN_KEY
    wrapped = module_call(bench)(nothing)  # type: ignore[arg-type]  # no more than the wrapper uses
    call_ns = _excess(wrapped, nothing, module)
    log = bench.log()
    log.mode, log.inside = LIGHT, True
    return Costs(COLD_FACTOR * call_ns, COLD_FACTOR * _excess(wrapped, nothing, module))


def _excess(wrapped: Wrapped, plain: Wrapped, module: Any) -> float:
    least = min(_loop(wrapped, module) for _ in range(LOOPS)) - min(_loop(plain, module) for _ in range(LOOPS))
    return max(least, LEAST_NS)


def _loop(function: Wrapped, module: Any) -> float:
    start = time.perf_counter_ns()
    for _ in range(CALLS):
        function(module)
    return (time.perf_counter_ns() - start) / CALLS
