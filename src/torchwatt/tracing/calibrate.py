"""What the module wrapper costs on this machine."""

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
        """Never needed here."""

    outermost_begins = overflow

    def is_new_outermost(self, _key: int) -> bool:
        return False


class _NoModule:
    """Stands in for a module."""


def calibrate(clock_ns: Callable[[], int]) -> Costs:
    """Measure what logging a call and letting one pass cost in a loop, in under 2 ms; training finds colder caches."""

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
    start = own_ns()  # another thread that wants the interpreter meanwhile makes no call dearer
    for _ in range(CALLS):
        function(module)
    return (own_ns() - start) / CALLS
