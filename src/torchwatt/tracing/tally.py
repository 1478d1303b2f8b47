"""Sum the time of each module so far, at an update cost that is independent of the run's length.

`Tally.update` reads new log entries once. Calls whose modules were not logged are kept as sums: of outermost calls, of
backward calls, of steps of which only the end was recorded. `Tally.spread` divides these among modules like the calls
whose modules were logged.

This is for a view of a run in progress. The report divides each call by the nearest traced ones in which the same
modules ran; both book the same time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.activity import Activity
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import (
    IDLE,
    UNATTRIBUTED,
    Slot,
)
from torchwatt.tracing.devices.watch import KEY_MARK
from torchwatt.tracing.fold import widen_rows
from torchwatt.tracing.join import join
from torchwatt.tracing.log import NO_ROWS
from torchwatt.tracing.naming import RESERVED_SLOTS, Names, models_among, resolve
from torchwatt.tracing.ranges import NOBODY, enclosing
from torchwatt.tracing.rounds import OptimizerEnd
from torchwatt.tracing.rows import (
    COMPILE_KEY,
    END,
    FAILED_SIZE,
    FIRST_SCOPE_KEY,
    FORWARD_TASK,
    KEY,
    LIGHT_TASK,
    PROFILER_KEY,
    SEQ0,
    SEQ1,
    START,
    STEP_KEY,
    TASK,
    Backward,
    Nodes,
)
from torchwatt.tracing.step_count import News, StepCount
from torchwatt.tracing.steps import Calls

if TYPE_CHECKING:
    from torchwatt.tracing.hub import Hub
    from torchwatt.tracing.log import Log, LogReader

MANY_ALIKE, FAR_MORE = 4, 2.0
PAUSE_NS = 500_000_000  # between two calls: long enough for the process's CPU time to show whether anything ran
MOST_HELD = 50_000  # rows of calls that have not ended; beyond, ended rows are counted

# What time is booked to: a name, and a key of the registry, or 0.
Kind = tuple[str, int]
FORWARD, BACKWARD = "forward", "backward"  # a module itself, in a call whose modules were logged
CALL, GRADIENT, STEP = "call", "gradient", "step"  # an outermost call, a backward call, a step, without inner records
OWN = "own"  # other rows, by their key; 0: not logged


class Sums:
    """Amounts by kind: of modules as arrays indexed by key, of others by name."""

    def __init__(self) -> None:
        self.of_modules: dict[str, FloatArray] = {FORWARD: np.zeros(0), BACKWARD: np.zeros(0)}
        self.rest: dict[Kind, float] = defaultdict(float)

    @classmethod
    def of(cls, of_modules: Mapping[str, FloatArray], of_others: Mapping[Kind, float]) -> Sums:
        """Return the sums of these amounts."""
        sums = cls()
        for phase, amounts in of_modules.items():
            sums.add_modules(phase, amounts)
        sums.rest.update(of_others)
        return sums

    def add(self, sums: Sums, factor: float = 1.0) -> None:
        """Add other sums times a factor."""
        for phase, amounts in sums.of_modules.items():
            self.add_modules(phase, factor * amounts)
        for kind, amount in sums.rest.items():
            self.rest[kind] += factor * amount

    def add_modules(self, phase: str, amounts: FloatArray) -> None:
        """Add amounts of modules, indexed by key."""
        own = self.of_modules[phase]
        if len(amounts) > len(own):
            own = self.of_modules[phase] = np.concatenate((own, np.zeros(len(amounts) - len(own))))
        own[: len(amounts)] += amounts

    def total(self) -> float:
        """Return the sum of all amounts."""
        return float(sum(amounts.sum() for amounts in self.of_modules.values())) + sum(self.rest.values())


@dataclass(slots=True, eq=False)
class Stretch:
    """Work between two instants: ns by kind; with `gap_ns` as long as the interval."""

    start_ns: int
    end_ns: int
    ns: Sums = field(default_factory=Sums)
    calls: Sums = field(default_factory=Sums)
    gap_ns: float = 0.0  # without any record
    pauses: list[tuple[int, int]] = field(default_factory=list)  # long gaps of the own thread
    first_ns: int = 0  # start of the first record; 0 without any
    last_ns: int = 0  # end of the last record


@dataclass(slots=True, eq=False)
class _Pattern:
    """The division of calls of one kind, from those with inner records."""

    ns: Sums = field(default_factory=Sums)
    calls: Sums = field(default_factory=Sums)
    count: int = 0

    def least(self, own_ns: FloatArray, length_ns: int) -> None:
        """Add a backward call: the shortest time of each module is kept, since other programs only lengthen it.

        Args:
            own_ns: By key of the module.
            length_ns: Of the whole call, without the window around it.
        """
        shortest = self.ns.of_modules[BACKWARD]
        n = max(len(shortest), len(own_ns))
        before, added = np.pad(shortest, (0, n - len(shortest))), np.pad(own_ns, (0, n - len(own_ns)))
        merged = np.where((before > 0) & (added > 0), np.minimum(before, added), np.maximum(before, added))
        rest_ns = max(length_ns - float(own_ns.sum()), 0.0)
        self.ns.rest[GRADIENT, 0] = min(self.ns.rest.get((GRADIENT, 0), rest_ns), rest_ns)
        self.ns.of_modules[BACKWARD] = merged
        self.count += 1


# Kinds of intervals, numbered by index.
_KINDS = (FORWARD, BACKWARD, CALL, GRADIENT, STEP, OWN)
_FORWARD, _BACKWARD, _CALL, _GRADIENT, _STEP, _OWN = range(len(_KINDS))


@dataclass(frozen=True, slots=True, eq=False)
class _Items:
    """Intervals of one thread, sorted, outer before inner."""

    kind: IntArray  # a number as above
    key: IntArray  # of the registry; of a step, its row's task, with the signature
    start: IntArray
    end: IntArray
    own_ns: IntArray  # without nested intervals
    top: IntArray  # index of the outermost logged call around a module call; -1 for others
    grown: NDArray[np.bool_]  # made a graph for a backward pass
    failed: NDArray[np.bool_]  # raised


class _Thread:
    """What was read of one log."""

    def __init__(self, log: Log, *, from_start: bool) -> None:
        self.log = log
        self.reader: LogReader = log.reader(from_start=from_start)
        self.rows: IntArray = NO_ROWS  # read and not booked yet
        self.calls: list[Backward] = []
        self.until_ns = 0  # the latest instant outside calls and steps: what ended before it is booked
        self.outer = 0  # key of the latest outermost call
        self.pairs_ns = 0  # steps until then were studied

    def read(self, roots: IntArray) -> list[OptimizerEnd]:
        """Read new entries; return the new ends of optimizer steps."""
        self.log.settle()
        step_ns = self.log.step_end  # before the rows are read: all rows of a step precede its end
        rows, calls, ends = self.reader.take()
        self.rows = np.concatenate((self.rows, rows)) if len(self.rows) else rows
        self.calls = sorted([*self.calls, *calls], key=lambda call: call.end_ns)
        outer = (self.rows[:, TASK] <= FORWARD_TASK) & np.isin(self.rows[:, KEY], roots)
        self.until_ns = max(self.until_ns, step_ns, int(self.rows[outer, END].max(initial=0)))
        if len(self.rows) > MOST_HELD:
            self.until_ns = int(self.rows[-1, END])
        return [(key, end_ns, 1) for key, end_ns in ends]

    def done(self) -> tuple[IntArray, list[Backward]]:
        """Return and drop the entries that have ended."""
        late = len(self.rows) - int(np.searchsorted(self.rows[:, END], self.until_ns, side="right"))
        rows, self.rows = self.rows[: len(self.rows) - late], self.rows[len(self.rows) - late :]
        calls = [call for call in self.calls if call.end_ns <= self.until_ns]
        self.calls = self.calls[len(calls) :]
        return rows, calls

    def items(self, rows: IntArray, calls: Sequence[Backward]) -> _Items:
        """Return rows and backward calls as intervals."""
        start = np.concatenate((rows[:, START], np.array([call.start_ns for call in calls], dtype=np.int64)))
        end = np.concatenate((rows[:, END], np.array([call.end_ns for call in calls], dtype=np.int64)))
        kind = np.concatenate((_kinds(rows), np.full(len(calls), _GRADIENT)))
        beside = np.append(rows[:, KEY] != PROFILER_KEY, np.ones(len(calls), dtype=np.bool_))
        widen_rows(rows, (start, end), (start[beside], end[beside]), self.log.margins)
        order = np.lexsort((-end, start))
        start, end, kind = start[order], end[order], kind[order]
        named = np.where(rows[:, KEY] == STEP_KEY, rows[:, TASK], rows[:, KEY])
        key = np.concatenate((named, np.zeros(len(calls), dtype=np.int64)))[order]
        size = np.concatenate((rows[:, SEQ1] - rows[:, SEQ0], np.zeros(len(calls), dtype=np.int64)))[order]
        above = enclosing(start, end)
        nested = np.flatnonzero(above != NOBODY)
        own_ns = end - start - np.bincount(above[nested], (end - start)[nested], len(start)).astype(np.int64)
        top = _tops(above, kind)
        self._name_gradients(kind, key, top)
        return _Items(kind, key, start, end, np.maximum(own_ns, 0), top, size > 0, size == FAILED_SIZE)

    def _name_gradients(self, kind: IntArray, key: IntArray, top: IntArray) -> None:
        """Set the key of each backward call to that of the outermost call before it."""
        outer = np.flatnonzero((kind == _CALL) | (top == np.arange(len(top))))
        gradients = np.flatnonzero(kind == _GRADIENT)
        before = np.searchsorted(outer, gradients) - 1
        key[gradients] = np.where(before >= 0, key[outer[before]] if len(outer) else 0, self.outer)
        self.outer = int(key[outer[-1]]) if len(outer) else self.outer

    def pairs(self) -> list[tuple[int, IntArray]]:
        """Return (0, traced steps) and (1, steps recorded by bounds), new ones only, as start_ns and end_ns."""
        pairs = []
        for number, noted in enumerate((self.log.traced, self.log.skeletons)):
            flat = np.array(noted[:], dtype=np.int64)
            edges = flat[: len(flat) // 2 * 2].reshape(-1, 2)
            pairs.append((number, edges[(edges[:, 0] >= self.pairs_ns) & (edges[:, 1] <= self.until_ns)]))
        self.pairs_ns = max((int(edges[-1, 1]) for _, edges in pairs if len(edges)), default=self.pairs_ns)
        return pairs


def _kinds(rows: IntArray) -> IntArray:
    module = rows[:, KEY] > 0
    codes = np.full(len(rows), _OWN, dtype=np.int64)
    codes[module] = _FORWARD
    codes[module & (rows[:, TASK] >= 0)] = _BACKWARD
    codes[module & (rows[:, TASK] <= LIGHT_TASK)] = _CALL
    codes[rows[:, KEY] == STEP_KEY] = _STEP
    return codes


def _tops(above: IntArray, kind: IntArray) -> IntArray:
    """Return the outermost logged call around each call of a module, else the call itself."""
    top = np.where(kind == _FORWARD, np.arange(len(kind)), NOBODY)
    inner = (kind == _FORWARD) & (above != NOBODY) & (kind[above] == _FORWARD)
    while True:
        further = np.where(inner, top[above], top)
        if np.array_equal(further, top):
            return top
        top = further


class Tally:
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
        hub: Hub,
        own: Log,
        logs: Callable[[], Iterable[Log]],
        marked: Callable[[], int | None] = lambda: None,
        *,
        start_ns: int,
        given_key: int | None = None,
    ) -> None:
        self._hub, self._own, self._given = hub, own, given_key
        self._logs, self._marked = logs, marked
        self._threads: dict[Log, _Thread] = {own: _Thread(own, from_start=False)}
        self._frontier_ns = start_ns
        self._count = StepCount(start_ns)
        self._patterns: dict[Kind, _Pattern] = defaultdict(_Pattern)
        self._varying: set[int] = set()  # modules whose number of calls per outermost call varies
        self._sizes: dict[int, int] = {}  # parameters of the outermost modules
        self._trained = False
        self._optimizers: set[int] = set()  # keys of optimizers of the own thread
        self._names, self._named = Names(), (0, 0, 0)
        self._devices: dict[str, dict[Slot, float]] = {}
        self._device_windows = 0
        self.steps = 0
        self.touched = 0  # rows, calls and entries that the last update read

    def update(self, now_ns: int) -> Stretch | None:
        """Read new entries, and return the work since the last stretch; None while no call and no step has ended."""
        self.touched = 0
        roots = np.array([root.key for root in self._hub.registry.roots], dtype=np.int64)
        for log in self._logs():
            if log not in self._threads:
                self._threads[log] = _Thread(log, from_start=True)
        ends = {thread: thread.read(roots) for thread in self._threads.values()}
        end_ns = max(thread.until_ns for thread in self._threads.values())
        stretch = Stretch(self._frontier_ns, max(end_ns, self._frontier_ns))
        news: list[News] = []
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

    def open(self, now_ns: int) -> Stretch:
        """Return the work since the latest stretch, as far as recorded: calls in progress are a gap."""
        stretch = Stretch(self._frontier_ns, max(now_ns, self._frontier_ns))
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
    def _book(items: _Items, stretch: Stretch) -> None:
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

    def _study(self, thread: _Thread, items: _Items, calls: Sequence[Backward]) -> None:
        """Study how calls and steps are divided, from those with inner records."""
        nested = np.flatnonzero(items.top != NOBODY)
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

    def _compare(self, pattern: _Pattern, each: FloatArray) -> None:
        before = pattern.calls.of_modules[FORWARD] / max(pattern.count, 1)
        n = max(len(before), len(each))
        usual = np.pad(before, (0, n - len(before))) if pattern.count else np.round(np.pad(each, (0, n - len(each))))
        self._varying.update(np.flatnonzero(usual != np.pad(each, (0, n - len(each)))).tolist())

    def _study_backward(self, thread: _Thread, call: Backward, items: _Items) -> None:
        if "lanes" not in call.cache:
            other_tables = [log.table() for log in self._threads if log is not thread.log]
            lanes = join(call, thread.log.table(), other_tables)
            call.cache["lanes"] = [np.array(lane, dtype=np.int64).reshape(-1, 4) for lane in lanes]
        at = np.flatnonzero((items.kind == _GRADIENT) & (items.end == call.end_ns))
        if not call.cache["lanes"] or not len(at):
            return
        pieces = call.cache["lanes"][0]
        self.touched += len(pieces)
        pieces = pieces[np.lexsort((-pieces[:, 1], pieces[:, 0]))]
        above = enclosing(pieces[:, 0], pieces[:, 1])
        length = pieces[:, 1] - pieces[:, 0]
        nested = above != NOBODY
        own_ns = np.maximum(length - np.bincount(above[nested], length[nested], len(length)), 0)
        pattern, owned = self._patterns[GRADIENT, int(items.key[at[0]])], pieces[:, 2] > 0
        nodes = call.nodes if isinstance(call.nodes, Nodes) or call.nodes is None else call.nodes.nodes()
        began_ns = call.start_ns if nodes is None else int(nodes.start_ns.min())  # before that the window opens
        pattern.least(_by_key(pieces[owned, 2], own_ns[owned]), int(pieces[:, 1].max()) - began_ns)

    def _study_steps(self, pattern: _Pattern, bounds: IntArray, items: _Items) -> None:
        if not len(bounds):
            return
        step = np.minimum(np.searchsorted(bounds[:, 1], items.start, side="right"), len(bounds) - 1)
        within = (items.start >= bounds[step, 0]) & (items.start < bounds[step, 1]) & (items.kind != _STEP)
        excluded = (items.kind == _OWN) & np.isin(items.key, (PROFILER_KEY, COMPILE_KEY))  # does not recur
        in_step = within & ~excluded
        logged = np.flatnonzero(in_step & (items.top != NOBODY))
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

    def _news(self, items: _Items, ends: Mapping[_Thread, list[OptimizerEnd]]) -> News:
        outer = np.flatnonzero(((items.kind == _CALL) | (items.top == np.arange(len(items.top)))) & ~items.failed)
        key, grown = items.key[outer], items.grown[outer]
        self._trained |= bool(grown.any())
        ones = np.ones(len(outer), dtype=np.int64)
        calls = Calls(items.start[outer], items.end[outer], ones, grown, np.isin(key, self._main(key)), ones, ones == 0)
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
        return News(calls, gradients, steps, optimizers)

    def _is_part(self, task: int) -> bool:
        """Return whether a step recorded by its end was interrupted, by the task of its row."""
        return bool(self._hub.signatures.of[LIGHT_TASK - task].part)

    def _main(self, called: IntArray) -> list[int]:
        """Return the keys of models among the outermost modules."""
        for key in np.unique(called).tolist():
            if key not in self._sizes:
                self._sizes[key] = _params(self._hub, key)
        main = self._names.main if self._given is None else self._names.main | {self._given}
        return list(models_among(self._sizes, main, trained=self._trained))

    def names(self, *sums: Sums) -> Names:
        """Return the names of the modules; resolved again when there are new modules."""
        every = [*sums, *(pattern.ns for pattern in self._patterns.values())]
        parts = [part for each in every for part in each.of_modules.values()]
        calls = {key for each in every for kind, key in each.rest if kind == CALL}
        calls |= {key for kind, key in self._patterns if kind == CALL}
        used = np.zeros(max([len(part) for part in parts] + [key + 1 for key in calls]), dtype=np.bool_)
        for part in parts:
            used[: len(part)] |= part > 0
        used[list(calls)] = True
        registry = self._hub.registry
        state = len(registry.roots), len(registry.facts), int(used.sum())
        if state != self._named or registry.dirty:
            if registry.dirty:
                registry.refresh()
            self._names = resolve(registry.roots, registry.facts, np.flatnonzero(used), self._given)
            self._named = state
        return self._names

    def spread(self, sums: Sums) -> Sums:
        """Return sums in which calls and steps are divided among modules, as far as known."""
        self.names(sums)  # sets the names by which similar modules are grouped
        sums_by_module = Sums.of(sums.of_modules, {})
        of_others = dict(sums.rest)
        steps = of_others.pop((STEP, 0), 0.0)
        pattern = self._patterns[STEP, 1] if self._patterns[STEP, 1].count else self._patterns[STEP, 0]
        shares = pattern.ns.rest if pattern.ns.total() > 0 else {(OWN, 0): 1.0}
        total_share = sum(shares.values())
        for each, part in shares.items():
            of_others[each] = of_others.get(each, 0.0) + steps * part / total_share
        for (kind, key), amount in of_others.items():
            division = self._inside(kind, key)
            if division is not None:
                sums_by_module.add(division, amount / division.total())
            elif kind == CALL:
                sums_by_module.add_modules(FORWARD, _only(key, amount))
            else:
                sums_by_module.rest[kind, key] += amount
        return sums_by_module

    def _inside(self, kind: str, key: int) -> Sums | None:
        """Return the division of calls of a kind; for backward calls without one, that of others; None: unknown."""
        pattern = self._patterns.get((kind, key))
        if kind == GRADIENT and (pattern is None or not pattern.count):
            pattern = next(
                (each for (name, _), each in self._patterns.items() if name == GRADIENT and each.count), None
            )
        if pattern is None or pattern.ns.total() <= 0:
            return None
        return self._calm(pattern.ns) if kind == GRADIENT else pattern.ns

    def _calm(self, ns: Sums) -> Sums:
        """Limit modules with far more time than similar ones: another program ran during their few calls."""
        limited = Sums.of(ns.of_modules, ns.rest)
        amounts = limited.of_modules[BACKWARD]
        groups: dict[object, list[int]] = defaultdict(list)
        for key in np.flatnonzero(amounts).tolist():
            groups[self._hub.registry.facts.get(key), re.sub(r"\d+", "#", self._names.of(key))].append(key)
        for keys in groups.values():
            if len(keys) >= MANY_ALIKE:
                amounts[keys] = np.minimum(amounts[keys], FAR_MORE * np.median(amounts[keys]))
        return limited

    def device_shares(self, device: str) -> Mapping[Slot, float]:
        """Return a device's ns by slot, and its idle ns, in its recorded windows."""
        watch = self._hub.devices
        if watch is None:
            return {}
        windows = watch.windows()
        for window in windows[self._device_windows :]:
            for activity in window:
                self.touched += len(activity)
                _add_activity(self._devices.setdefault(activity.device, defaultdict(float)), activity)
        self._device_windows = len(windows)
        busy_ns: dict[Slot, float] = defaultdict(float)
        for slot, ns in self._devices.get(device, {}).items():
            key = slot.fqn.removeprefix(KEY_MARK)
            named = slot.fqn.startswith(KEY_MARK) and key.isdecimal()
            busy_ns[Slot(self._names.of(int(key)), slot.phase) if named else slot] += ns
        return busy_ns

    def calls_of(self, calls: Sums) -> dict[int, int | None]:
        """Return the number of calls of each module; None where it is unknown for some calls."""
        totals = Sums()
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
                    totals.add(Sums.of({FORWARD: division.calls.of_modules[FORWARD]}, {}), count / division.count)
                    unseen.update(self._varying)
        counts = totals.of_modules[FORWARD]
        return {key: None if key in unseen else round(counts[key]) for key in np.flatnonzero(counts).tolist()}

    def slots(self, sums: Sums) -> dict[Slot, float]:
        """Return divided sums by the slots of the report."""
        names, by_slot = self.names(sums), dict[Slot, float]()
        amounts = (
            (self._slot(phase, key, names), float(part[key]))
            for phase, part in sums.of_modules.items()
            for key in np.flatnonzero(part).tolist()
        )
        for slot, amount in (*amounts, *((self._slot(*kind, names), each) for kind, each in sums.rest.items())):
            by_slot[slot] = by_slot.get(slot, 0.0) + amount
        return by_slot

    def _slot(self, kind: str, key: int, names: Names) -> Slot:
        if kind in {FORWARD, BACKWARD}:
            return Slot(names.of(key), "backward" if kind == BACKWARD else "forward")
        if kind == OWN and key <= FIRST_SCOPE_KEY:
            return Slot(next((name for name, at in self._hub.scopes.items() if at == key), UNATTRIBUTED), "other")
        if kind == GRADIENT:
            return Slot(UNATTRIBUTED, "backward")
        return RESERVED_SLOTS.get(key, Slot(UNATTRIBUTED, "other"))


def _by_kind(items: _Items, which: IntArray) -> Iterator[tuple[Kind, float, int]]:
    """Yield the kind, own ns and number of intervals other than logged module calls."""
    kind_and_key, number = np.unique(np.column_stack((items.kind, items.key))[which], axis=0, return_inverse=True)
    ns = np.bincount(number.ravel(), items.own_ns[which], len(kind_and_key))
    count = np.bincount(number.ravel(), minlength=len(kind_and_key))
    for (kind, key), own_ns, n in zip(kind_and_key.tolist(), ns.tolist(), count.tolist(), strict=True):
        name = _KINDS[kind]
        yield (name, 0 if name == STEP else key), own_ns, n


def _add_activity(sums: dict[Slot, float], activity: Activity) -> None:
    """Add a device's busy ns by slot in a window, and its idle ns."""
    length_ns = (activity.end_ns - activity.start_ns).astype(np.float64)
    for slot, ns in zip(
        activity.slots, np.bincount(activity.slot, length_ns, len(activity.slots)).tolist(), strict=True
    ):
        sums[slot] += ns
    order = np.argsort(activity.start_ns, kind="stable")
    reach = np.maximum.accumulate(activity.end_ns[order])
    busy_ns = float((reach - np.maximum(activity.start_ns[order], np.concatenate(([0], reach[:-1])))).clip(0).sum())
    watched_ns = float(sum(end - start for start, end in activity.covered))
    sums[Slot(IDLE, "other")] += max(watched_ns - busy_ns, 0.0)


def _weight(length_ns: IntArray) -> FloatArray:
    """Return weights of calls, 1 / length^2: long calls, cold or interrupted, have little weight."""
    return 1.0 / np.maximum(length_ns, 1).astype(np.float64) ** 2


def _pauses(items: _Items) -> list[tuple[int, int]]:
    """Return the long gaps between the intervals of a thread."""
    reach = np.maximum.accumulate(items.end)[:-1]
    long = np.flatnonzero(items.start[1:] - reach >= PAUSE_NS)
    return list(zip(reach[long].tolist(), items.start[1:][long].tolist(), strict=True))


def _by_key(key: IntArray, weights: IntArray | FloatArray | None = None) -> FloatArray:
    """Return sums of weights, or counts, indexed by key."""
    return np.asarray(np.bincount(key, weights), dtype=np.float64)


def _only(key: int, amount: float) -> FloatArray:
    amounts = np.zeros(key + 1)
    amounts[key] = amount
    return amounts


def _fit(stretch: Stretch) -> None:
    """Scale the work to at most the length of the stretch: concurrent threads share it; the remainder is a gap."""
    length_ns, ran_ns = stretch.end_ns - stretch.start_ns, stretch.ns.total()
    if ran_ns > length_ns:
        scaled = Sums()
        scaled.add(stretch.ns, length_ns / ran_ns)
        stretch.ns = scaled
    stretch.gap_ns = max(length_ns - ran_ns, 0.0)


def _params(hub: Hub, key: int) -> int:
    """Return the parameters of a module with its submodules, or of the modules that a compiled function uses."""
    named = hub.compiled_calls.named.get(key)
    if named is not None:
        return named[1]
    registry = hub.registry
    root = next((root for root in registry.roots if root.key == key), None)
    keys_below = {key} if root is None else {own for _, own in root.paths}
    return sum(registry.facts[own].params for own in keys_below if own in registry.facts)
