"""One session's view of what the process traces."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from typing import Any

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import ROOT
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.tracing.assemble import Names, Spans, ThreadRows
from torchwatt.tracing.fill import Template, carry_rel_sd
from torchwatt.tracing.hub import HUB
from torchwatt.tracing.log import END, KEY, START, STEP, Log
from torchwatt.tracing.names import infos, name_modules
from torchwatt.tracing.pace import Pace
from torchwatt.tracing.steps import find_steps

# What one module call costs while it is traced (benchmarks/span_cost.py measures it anew); for Trace.cost_s.
SPAN_NS = 1_500

_others: list[tuple[int, Tracer]] = []


class Tracer:
    """Traces from `start` to `stop` what its own thread does, and threads that no other tracer has.

    Args:
        model: Names its modules as in `state_dict`; without it roots are found and named by themselves.
        windows: Look into some backward passes, so that backward is known per layer.
        overhead_budget: Part of the elapsed time that windows may cost.
    """

    def __init__(self, model: Any = None, *, windows: bool = True, overhead_budget: float = 0.01) -> None:
        self._model = model
        self._windows = windows
        self._budget = overhead_budget
        self._thread = 0
        self._start_ns = 0
        self._from: dict[Log, int] = {}
        self._main: int | None = None
        self._pace: Pace | None = None
        self._result: Trace | None = None
        self._running = False

    def start(self) -> None:
        """Put the wrappers on, if this is the first tracer."""
        if self._running or self._result is not None:
            return
        HUB.enter()
        self._running = True
        self._thread, self._start_ns = threading.get_ident(), time.monotonic_ns()
        with HUB.lock:
            own = HUB.log()
            if all(thread != self._thread for thread, _ in _others):
                own.depth = 0  # whatever an earlier session left half-way
            self._from = {log: len(log) for log in HUB.logs}
            _others.append((self._thread, self))
        if self._model is not None:
            self._main = HUB.registry.add(self._model, root=True)
            self._model = None  # the caller's model is not kept alive
        self._pace = Pace(self._budget if self._windows else 0.0, self._start_ns)
        HUB.paces.append((self._thread, self._pace))

    def step(self) -> None:
        """Mark the end of a step; automatic steps no longer count."""
        if self._running and HUB.on:
            now_ns = time.monotonic_ns()
            HUB.log().append((STEP, now_ns, now_ns, 0, 0, -1, -1))

    def snapshot(self) -> Trace:
        """Return what is known so far."""
        return self._result or (self._assemble(time.monotonic_ns()) if self._running and HUB.on else EMPTY_TRACE)

    def stop(self) -> Trace:
        """Take the wrappers off, if this is the last tracer, and return the trace; later calls return the same."""
        if self._result is not None or not self._running:
            return self._result or EMPTY_TRACE
        self._running = False
        try:
            forked = not HUB.on
            self._result = EMPTY_TRACE if forked else self._assemble(time.monotonic_ns())
        finally:
            _others[:] = [(thread, tracer) for thread, tracer in _others if tracer is not self]
            HUB.paces[:] = [(thread, pace) for thread, pace in HUB.paces if pace is not self._pace]
            self._from = {}
            HUB.leave()
        return self._result

    def _assemble(self, end_ns: int) -> Trace:
        registry = HUB.registry
        registry.rename_late_children()
        rows = {log: self._rows(log, end_ns) for log in self._logs()}
        called = [int(key) for table in rows.values() for key in np.unique(table[:, KEY]) if key >= 0]
        modules = name_modules(registry.known, called, self._main)
        main = next((key for key, fqn in modules.items() if fqn == ROOT), None)
        spans, names = Spans(), Names(modules, list(HUB.scopes))
        templates: dict[Hashable, list[Template]] = {}
        empty = 0
        for log, table in rows.items():
            part = ThreadRows(table, log.thread, names, spans)
            part.build(list(HUB.windows))
            empty += part.empty
            for key, found in part.templates.items():
                templates[log.thread, key] = found
        if empty:
            HUB.say("info", "BACKWARD_NOT_SPLIT", f"{empty} calls had no traced call of their kind to be split like")
        own = next((table for log, table in rows.items() if log.thread == self._thread), np.empty((0, 7), np.int64))
        calls = sum(int((table[:, KEY] >= 0).sum()) for table in rows.values())
        return _trace(
            spans,
            steps=find_steps(own, self._start_ns, main) if len(own) else (),
            modules=infos(registry.known, modules, self._main if self._main is not None else main),
            carry_rel_sd=carry_rel_sd(templates, len(spans.slots)),
            events=tuple(e for e in HUB.events if e.t_ns >= self._start_ns),
            cost_s=(calls * SPAN_NS + (self._pace.spent_ns if self._pace else 0)) / 1e9,
            windows=self._pace.windows if self._pace else 0,
        )

    def _logs(self) -> list[Log]:
        """Return the logs of this thread and of threads without a tracer of their own."""
        with HUB.lock:
            taken = {thread for thread, tracer in _others if thread != self._thread}
            return [log for log in HUB.logs if log.thread not in taken]

    def _rows(self, log: Log, end_ns: int) -> IntArray:
        table = log.since(self._from.get(log, 0))
        return table[(table[:, START] >= self._start_ns) & (table[:, END] <= end_ns)]


def _trace(spans: Spans, **rest: Any) -> Trace:
    columns = list(zip(*spans.parts, strict=True)) if spans.parts else [()] * 6
    sizes = [len(part[0]) for part in spans.parts]
    empty = np.empty(0, dtype=np.int64)
    slot, start, end, thread = (np.concatenate([empty, *column]) for column in columns[:4])
    return Trace(
        slots=tuple(spans.slots),
        slot=slot,
        start_ns=start,
        end_ns=end,
        thread=thread,
        filled=np.repeat(np.array(columns[4], dtype=np.bool_), sizes),
        calls=np.repeat(np.array(columns[5], dtype=np.int64), sizes),
        **rest,
    )
