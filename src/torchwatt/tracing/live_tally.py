"""Sum the time of each module so far, for a view of a run in progress, at a constant cost an update.

Calls whose modules were not logged are kept as sums, and divided like the calls whose modules were logged. (The report
divides each call by the nearest traced ones in which the same modules ran; both book the same time.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchwatt.core.intervals import NO_INDEX, enclosing_array
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import Slot
from torchwatt.tracing.log_rows import (
    COMPILE_KEY,
    OUTERMOST_TASK,
    PROFILER_KEY,
    AutogradNodes,
    BackwardCall,
)
from torchwatt.tracing.loop_steps import OptimizerEnd, OutermostCalls, find_models
from torchwatt.tracing.module_registry import ModuleNames, resolve_names
from torchwatt.tracing.tally_reader import NewEntries, StepCounter
from torchwatt.tracing.tally_rows import TallyRows
from torchwatt.tracing.trace_spans import join_backward

if TYPE_CHECKING:
    from torchwatt.tracing.instrumentation import Instrumentation
    from torchwatt.tracing.thread_log import ThreadLog

from torchwatt.tracing.device_profiler import _add_activity
from torchwatt.tracing.tally_reader import (
    _BACKWARD,
    _CALL,
    _FORWARD,
    _GRADIENT,
    _OWN,
    _STEP,
    BACKWARD,
    CALL,
    FORWARD,
    GRADIENT,
    OWN,
    STEP,
    CallDivision,
    Kind,
    LogIntervals,
    LogTally,
    TimeSums,
    WorkInterval,
    _by_key,
    _by_kind,
    _fit,
    _only,
    _pauses,
    _weight,
)


class LiveTally:
    """Reads the logs of a tracer's session.

    Args:
        hub: Has the registry and the devices.
        own: The log of the tracer's own thread, whose steps are counted.
        logs: Returns those of all threads that belong to the session.
        marked: Returns the number of steps that the user marked; None where steps are to be found.
        start_ns: Start of the session.
        given_key: Key of the model that the user named.
    """

    def __init__(
        self,
        hub: Instrumentation,
        own: ThreadLog,
        logs: Callable[[], Iterable[ThreadLog]],
        marked: Callable[[], int | None] = lambda: None,
        *,
        start_ns: int,
        given_key: int | None = None,
    ) -> None:
        self._hub, self._own, self._given = hub, own, given_key
        self._logs, self._marked = logs, marked
        self._threads: dict[ThreadLog, LogTally] = {own: LogTally(own, from_start=False)}
        self._frontier_ns = start_ns
        self._count = StepCounter(start_ns)
        self._patterns: dict[Kind, CallDivision] = defaultdict(CallDivision)
        self._varying: set[int] = set()  # modules whose number of calls per outermost call varies
        self._sizes: dict[int, int] = {}  # parameters of the outermost modules
        self._optimizers: set[int] = set()  # keys of optimizers of the own thread
        self._names, self._named = ModuleNames(), (0, 0, 0)
        self._rows: TallyRows | None = None
        self._size = 0  # keys of modules are less than this
        self._devices: dict[str, dict[Slot, float]] = {}
        self._trained, self._device_windows, self.steps = False, 0, 0
        self.touched = 0  # rows, calls and entries that the last update read

    def update(self, now_ns: int) -> WorkInterval | None:
        """Read new entries, and return the work since the last stretch; None while no call and no step has ended."""
        self.touched = 0
        roots = np.array([root.key for root in self._hub.registry.roots], dtype=np.int64)
        for log in self._logs():
            if log not in self._threads:
                self._threads[log] = LogTally(log, from_start=True)
        ends = {thread: thread.read(roots) for thread in self._threads.values()}
        end_ns = max(thread.until_ns for thread in self._threads.values())
        stretch = WorkInterval(self._frontier_ns, max(end_ns, self._frontier_ns))
        news: list[NewEntries] = []
        for thread in self._threads.values():
            rows, calls = thread.done()
            items = thread.items(rows, calls)
            self.touched += len(items.kind)
            self._book(items, stretch)
            self._study(thread, items, calls)
            if thread.log is self._own:
                news.append(self._news(items, ends))
                stretch.pauses += _pauses(items)
        self._count.add(news[0], now_ns)
        marked = self._marked()
        self.steps = self._count.count() if marked is None else marked
        self.touched += self._count.looked_at
        if stretch.end_ns <= self._frontier_ns:
            return None
        self._frontier_ns = stretch.end_ns
        _fit(stretch)
        return stretch

    def steps_now(self) -> int | None:
        """Return the number of steps so far without reading entries; None where only an update can find it."""
        marked = self._marked()
        if marked is not None:
            return marked
        each = self._count.steps_per_end
        if not each:
            return None
        logs = [self._threads[self._own]] if self._optimizers else list(self._threads.values())
        return self.steps + int(each * sum(thread.reader.waiting() for thread in logs))

    def open(self, now_ns: int) -> WorkInterval:
        """Return the work since the latest stretch, as far as recorded: calls in progress are a gap."""
        stretch = WorkInterval(self._frontier_ns, max(now_ns, self._frontier_ns))
        for thread in self._threads.values():
            outer = thread.outer
            self._book(thread.items(thread.rows, thread.calls), stretch)
            thread.outer = outer
        _fit(stretch)
        return stretch

    def close(self) -> None:
        """Detach from the logs."""
        for thread in self._threads.values():
            thread.log.forget_reader(thread.reader)

    @staticmethod
    def _book(items: LogIntervals, stretch: WorkInterval) -> None:
        for number, phase in ((_FORWARD, FORWARD), (_BACKWARD, BACKWARD)):
            which = np.flatnonzero(items.kind == number)
            stretch.ns.add_modules(phase, _by_key(items.key[which], items.own_ns[which]))
            stretch.calls.add_modules(phase, _by_key(items.key[which]))
        for kind, ns, count in _by_kind(items, np.flatnonzero(items.kind >= _CALL)):
            stretch.ns.rest[kind] += ns
            stretch.calls.rest[kind] += count
        if len(items.start):
            stretch.first_ns = min(stretch.first_ns or int(items.start[0]), int(items.start[0]))
            stretch.last_ns = max(stretch.last_ns, int(items.end.max()))

    def _study(self, thread: LogTally, items: LogIntervals, calls: Sequence[BackwardCall]) -> None:
        """Study how calls and steps are divided, from those with inner records."""
        nested = np.flatnonzero(items.top != NO_INDEX)
        top = items.top[nested]
        for outer in np.unique(items.key[top]).tolist():
            which = nested[items.key[top] == outer]
            pattern = self._patterns[CALL, outer]
            count = int((items.top[which] == which).sum())
            number = _by_key(items.key[which])
            self._compare(pattern, number / count)
            weight = _weight((items.end - items.start)[items.top[which]])
            pattern.ns.add_modules(FORWARD, _by_key(items.key[which], weight * items.own_ns[which]))
            pattern.calls.add_modules(FORWARD, number)
            pattern.count += count
        for call in calls:
            if call.nodes is not None:
                self._study_backward(thread, call, items)
        if thread.log is self._own:
            for which_steps, bounds in thread.pairs():
                self._study_steps(self._patterns[STEP, which_steps], bounds, items)

    def _compare(self, pattern: CallDivision, each: FloatArray) -> None:
        before = pattern.calls.of_modules[FORWARD] / max(pattern.count, 1)
        n = max(len(before), len(each))
        usual = np.pad(before, (0, n - len(before))) if pattern.count else np.round(np.pad(each, (0, n - len(each))))
        self._varying.update(np.flatnonzero(usual != np.pad(each, (0, n - len(each)))).tolist())

    def _study_backward(self, thread: LogTally, call: BackwardCall, items: LogIntervals) -> None:
        if "lanes" not in call.cache:
            other_tables = [log.table() for log in self._threads if log is not thread.log]
            call.cache["lanes"] = join_backward(call, thread.log.table(), other_tables)
        at = np.flatnonzero((items.kind == _GRADIENT) & (items.end == call.end_ns))
        if not call.cache["lanes"] or not len(at):
            return
        pieces = call.cache["lanes"][0]
        self.touched += len(pieces)
        pieces = pieces[np.lexsort((-pieces[:, 1], pieces[:, 0]))]
        above = enclosing_array(pieces[:, 0], pieces[:, 1])
        length = pieces[:, 1] - pieces[:, 0]
        nested = above != NO_INDEX
        own_ns = np.maximum(length - np.bincount(above[nested], length[nested], len(length)), 0)
        pattern, owned = self._patterns[GRADIENT, int(items.key[at[0]])], pieces[:, 2] > 0
        nodes = call.nodes if isinstance(call.nodes, AutogradNodes) or call.nodes is None else call.nodes.nodes()
        began_ns = call.start_ns if nodes is None else int(nodes.start_ns.min())  # before that the window opens
        pattern.least(_by_key(pieces[owned, 2], own_ns[owned]), int(pieces[:, 1].max()) - began_ns)

    def _study_steps(self, pattern: CallDivision, bounds: IntArray, items: LogIntervals) -> None:
        if not len(bounds):
            return
        step = np.minimum(np.searchsorted(bounds[:, 1], items.start, side="right"), len(bounds) - 1)
        within = (items.start >= bounds[step, 0]) & (items.start < bounds[step, 1]) & (items.kind != _STEP)
        excluded = (items.kind == _OWN) & np.isin(items.key, (PROFILER_KEY, COMPILE_KEY))  # does not recur
        in_step = within & ~excluded
        logged = np.flatnonzero(in_step & (items.top != NO_INDEX))
        total = float(np.diff(bounds, axis=1).sum())
        for number in (_FORWARD, _BACKWARD):  # summed as the call that is recorded without module calls
            which = logged if number == _FORWARD else np.flatnonzero(in_step & (items.kind == _BACKWARD))
            keys = items.key[items.top[which]] if number == _FORWARD else np.zeros(len(which), dtype=np.int64)
            for key in np.unique(keys).tolist():
                mine = which[keys == key]
                call: Kind = (CALL if number == _FORWARD else GRADIENT, key)
                pattern.ns.rest[call] += float(items.own_ns[mine].sum())
                pattern.calls.rest[call] += int((items.top[mine] == mine).sum())
        for kind, ns, count in _by_kind(items, np.flatnonzero(in_step & (items.kind >= _CALL))):
            pattern.ns.rest[kind] += ns
            pattern.calls.rest[kind] += count
        pattern.count += len(bounds)
        pattern.ns.rest[OWN, 0] += max(total - float(items.own_ns[within].sum()), 0.0)

    def _news(self, items: LogIntervals, ends: Mapping[LogTally, list[OptimizerEnd]]) -> NewEntries:
        outer = np.flatnonzero(((items.kind == _CALL) | (items.top == np.arange(len(items.top)))) & ~items.failed)
        key, grown = items.key[outer], items.grown[outer]
        self._trained |= bool(grown.any())
        ones = np.ones(len(outer), dtype=np.int64)
        calls = OutermostCalls(
            items.start[outer], items.end[outer], ones, grown, np.isin(key, self._main(key)), ones, ones == 0
        )
        bounds = np.column_stack((items.start, items.end))
        own = next(each for thread, each in ends.items() if thread.log is self._own)
        self._optimizers.update(key for key, *_ in own)
        optimizers: list[list[OptimizerEnd]] = list(ends.values())
        if self._optimizers:
            ours = (each for some in ends.values() for each in some if each[0] in self._optimizers)
            optimizers = [sorted(ours, key=lambda each: each[1])]
        gradients, steps = bounds[items.kind == _GRADIENT], bounds[items.kind == _STEP]
        if not any(optimizers):  # steps recorded by their ends only, which a backward call ended
            whole_steps = steps[[not self._is_part(task) for task in items.key[items.kind == _STEP].tolist()]]
            start, end = whole_steps.T
            calls = calls.with_training(start, end - 1, np.ones(len(whole_steps), dtype=np.int64))
            gradients = np.concatenate((gradients, np.column_stack((end - 1, end))))
            gradients = gradients[np.argsort(gradients[:, 0], kind="stable")]
        return NewEntries(calls, gradients, steps, optimizers)

    def _is_part(self, task: int) -> bool:
        """Return whether a step recorded by its end was interrupted, by the task of its row."""
        return bool(self._hub.signatures.of[OUTERMOST_TASK - task].part)

    def _main(self, called: IntArray) -> list[int]:
        """Return the keys of models among the outermost modules."""
        for key in np.unique(called).tolist():
            if key not in self._sizes:
                self._sizes[key] = self._hub.registry.params_of(key, self._hub.compiled_calls.named)
        main = self._names.main if self._given is None else self._names.main | {self._given}
        return list(find_models(self._sizes, main, trained=self._trained))

    def names(self, *sums: TimeSums) -> ModuleNames:
        """Return the names of the modules; resolved again when there are new modules."""
        every = [*sums, *(pattern.ns for pattern in self._patterns.values())]
        parts = [part for each in every for part in each.of_modules.values()]
        calls = {key for each in every for kind, key in each.rest if kind == CALL}
        calls |= {key for kind, key in self._patterns if kind == CALL}
        used = np.zeros(max([len(part) for part in parts] + [key + 1 for key in calls]), dtype=np.bool_)
        for part in parts:
            used[: len(part)] |= part > 0
        used[list(calls)] = True
        self._size = len(used)
        registry = self._hub.registry
        state = len(registry.roots), len(registry.facts), int(used.sum())
        if state != self._named or registry.dirty:
            if registry.dirty:
                registry.refresh()
            self._names = resolve_names(registry.roots, registry.facts, np.flatnonzero(used), self._given)
            self._named = state
        return self._names

    def rows(self, sums: TimeSums) -> TallyRows:
        """Return the rows of sums; the same object while modules keep their names."""
        names = self.names(sums)
        if self._rows is None or self._rows.names is not names or self._rows.size < self._size:
            self._rows = TallyRows(names, self._hub.registry.facts, self._hub.scopes, self._size)
        return self._rows

    def spread(self, sums: TimeSums) -> TimeSums:
        """Return sums in which calls and steps are divided among modules, as far as known."""
        rows = self.rows(sums)
        sums_by_module = TimeSums.of(sums.of_modules, {})
        of_others = dict(sums.rest)
        steps = of_others.pop((STEP, 0), 0.0)
        pattern = self._patterns[STEP, 1] if self._patterns[STEP, 1].count else self._patterns[STEP, 0]
        shares = pattern.ns.rest if pattern.ns.total() > 0 else {(OWN, 0): 1.0}
        total_share = sum(shares.values())
        for each, part in shares.items():
            of_others[each] = of_others.get(each, 0.0) + steps * part / total_share
        for (kind, key), amount in of_others.items():
            division = self._inside(kind, key, rows)
            if division is not None:
                sums_by_module.add(division, amount / division.total())
            elif kind == CALL:
                sums_by_module.add_modules(FORWARD, _only(key, amount))
            else:
                sums_by_module.rest[kind, key] += amount
        return sums_by_module

    def _inside(self, kind: str, key: int, rows: TallyRows) -> TimeSums | None:
        """Return the division of calls of a kind; for backward calls without one, that of others; None: unknown."""
        pattern = self._patterns.get((kind, key))
        if kind == GRADIENT and (pattern is None or not pattern.count):
            gradients = (each for (name, _), each in self._patterns.items() if name == GRADIENT and each.count)
            pattern = next(gradients, None)
        if pattern is None or pattern.ns.total() <= 0:
            return None
        if kind != GRADIENT:
            return pattern.ns
        backward = rows.without_excess(pattern.ns.of_modules[BACKWARD])
        return TimeSums.of({**pattern.ns.of_modules, BACKWARD: backward}, pattern.ns.rest)

    def device_ns(self, device: str) -> Mapping[Slot, float]:
        """Return a device's ns by slot, of modules by their keys, and its idle ns, in its recorded windows."""
        watch = self._hub.devices
        if watch is None:
            return {}
        windows = watch.windows()
        for window in windows[self._device_windows :]:
            for activity in window:
                self.touched += len(activity)
                _add_activity(self._devices.setdefault(activity.device, defaultdict(float)), activity)
        self._device_windows = len(windows)
        return self._devices.get(device, {})

    def calls_of(self, calls: TimeSums) -> FloatArray:
        """Return the number of calls of each module by key; NaN where it is unknown for some calls."""
        totals = TimeSums()
        totals.add_modules(FORWARD, calls.of_modules[FORWARD])
        unseen: set[int] = set()
        of_others = dict(calls.rest)
        steps, pattern = of_others.pop((STEP, 0), 0.0), self._patterns[STEP, 1]
        pattern = pattern if pattern.count else self._patterns[STEP, 0]
        for (kind, key), count in pattern.calls.rest.items():
            of_others[kind, key] = of_others.get((kind, key), 0.0) + steps * count / pattern.count
        for (kind, key), count in of_others.items():
            if kind == CALL and count:
                division = self._patterns.get((CALL, key))
                if division is None or not division.count:
                    totals.add_modules(FORWARD, _only(key, count))
                else:
                    totals.add(TimeSums.of({FORWARD: division.calls.of_modules[FORWARD]}, {}), count / division.count)
                    unseen.update(self._varying)
        counts = np.rint(totals.of_modules[FORWARD])
        counts[[key for key in unseen if key < len(counts) and counts[key]]] = np.nan
        return counts
