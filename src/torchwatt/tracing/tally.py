"""Which module ran for how long so far, in sums that cost no more to bring up to date the longer the run.

`Tally.update` goes through what was logged since the last time, and never again through what was before. Calls whose
modules were not logged are kept as such sums: of outermost calls, of backward calls, of steps of which only the end was
noted. `Tally.spread` divides these among modules as the calls were divided whose modules were seen.

This is for a view of a run while it runs. The report divides each call by the traced ones nearest to it, with regard
to which modules ran in it; both book the same time.
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
from torchwatt.tracing.join import join
from torchwatt.tracing.log import NO_ROWS
from torchwatt.tracing.margins import widen
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
    OPTIMIZER_KEY,
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
PAUSE_NS = 500_000_000  # between two calls: so long that the CPU time of the process says whether something ran
MOST_HELD = 50_000  # rows of calls that have not ended; with more, what has ended is counted

# What time can be booked to. The number beside it is a key of the registry, or 0.
Kind = tuple[str, int]
FORWARD, BACKWARD = "forward", "backward"  # a module itself, in a call whose modules were logged
CALL, GRADIENT, STEP = "call", "gradient", "step"  # an outermost call, a backward call, a step, not seen inside
OWN = "own"  # what is no module, by the key of its rows; 0: not logged


class Sums:
    """Amounts by kind: of modules as arrays with a place for each key, of the rest by name."""

    def __init__(self) -> None:
        self.of_modules: dict[str, FloatArray] = {FORWARD: np.zeros(0), BACKWARD: np.zeros(0)}
        self.rest: dict[Kind, float] = defaultdict(float)

    @classmethod
    def of(cls, of_modules: Mapping[str, FloatArray], rest: Mapping[Kind, float]) -> Sums:
        """Return sums of such amounts."""
        made = cls()
        for phase, amounts in of_modules.items():
            made.add_modules(phase, amounts)
        made.rest.update(rest)
        return made

    def add(self, other: Sums, factor: float = 1.0) -> None:
        """Add what others are, times a factor."""
        for phase, amounts in other.of_modules.items():
            self.add_modules(phase, factor * amounts)
        for kind, amount in other.rest.items():
            self.rest[kind] += factor * amount

    def add_modules(self, phase: str, amounts: FloatArray) -> None:
        """Add amounts of modules, one for each key from 0 on."""
        own = self.of_modules[phase]
        if len(amounts) > len(own):
            own = self.of_modules[phase] = np.concatenate((own, np.zeros(len(amounts) - len(own))))
        own[: len(amounts)] += amounts

    def total(self) -> float:
        """Return everything together."""
        return float(sum(amounts.sum() for amounts in self.of_modules.values())) + sum(self.rest.values())


@dataclass(slots=True, eq=False)
class Stretch:
    """What ran between two instants: ns by kind; together as long as the stretch."""

    start_ns: int
    end_ns: int
    ns: Sums = field(default_factory=Sums)
    calls: Sums = field(default_factory=Sums)
    gap_ns: float = 0.0  # in which nothing was logged
    pauses: list[tuple[int, int]] = field(default_factory=list)  # long ones of these, of the own thread
    first_ns: int = 0  # when the first of it began; 0 where nothing did
    last_ns: int = 0  # when the last of it ended


@dataclass(slots=True, eq=False)
class _Pattern:
    """How calls of one kind are divided, of those that were seen inside."""

    ns: Sums = field(default_factory=Sums)
    calls: Sums = field(default_factory=Sums)
    count: int = 0

    def least(self, own_ns: FloatArray, length_ns: int) -> None:
        """Take a backward call: of each module the shortest time counts, since other programs only make it longer.

        Args:
            own_ns: By key of the module.
            length_ns: Of the whole call, without the window around it.
        """
        known = self.ns.of_modules[BACKWARD]
        n = max(len(known), len(own_ns))
        before, now = np.pad(known, (0, n - len(known))), np.pad(own_ns, (0, n - len(own_ns)))
        both = np.where((before > 0) & (now > 0), np.minimum(before, now), np.maximum(before, now))
        rest_ns = max(length_ns - float(own_ns.sum()), 0.0)
        self.ns.rest[GRADIENT, 0] = min(self.ns.rest.get((GRADIENT, 0), rest_ns), rest_ns)
        self.ns.of_modules[BACKWARD] = both
        self.count += 1


# What an interval is: its index here is its number.
_KINDS = (FORWARD, BACKWARD, CALL, GRADIENT, STEP, OWN)
_FORWARD, _BACKWARD, _CALL, _GRADIENT, _STEP, _OWN = range(len(_KINDS))


@dataclass(frozen=True, slots=True, eq=False)
class _Items:
    """Intervals of one thread, sorted, outer before inner."""

    kind: IntArray  # a number as above
    key: IntArray  # of the registry; of a step, what tells which modules ran in it
    start: IntArray
    end: IntArray
    own_ns: IntArray  # without what lies inside
    top: IntArray  # index of the outermost logged call that a module ran in; NOBODY of anything else
    grown: NDArray[np.bool_]  # made a graph for a backward pass
    failed: NDArray[np.bool_]  # raised


class _Thread:
    """What one log says, as far as it was read."""

    def __init__(self, log: Log, *, from_start: bool) -> None:
        self.log = log
        self.reader: LogReader = log.reader(from_start=from_start)
        self.rows: IntArray = NO_ROWS  # that were read and not booked yet
        self.calls: list[Backward] = []
        self.until_ns = 0  # the latest instant in no call and no step: what ended before it is booked
        self.outer = 0  # key of the latest outermost call
        self.pairs_ns = 0  # until then steps were studied

    def read(self, roots: IntArray) -> list[OptimizerEnd]:
        """Read what is new; return the ends of optimizer steps in it."""
        self.log.settle()
        step_ns = self.log.step_end  # before the rows are read: all rows of a step are there when its end is noted
        rows, calls, ends = self.reader.take()
        self.rows = np.concatenate((self.rows, rows)) if len(self.rows) else rows
        self.calls = sorted([*self.calls, *calls], key=lambda call: call.end_ns)
        outer = (self.rows[:, TASK] <= FORWARD_TASK) & np.isin(self.rows[:, KEY], roots)
        self.until_ns = max(self.until_ns, step_ns, int(self.rows[outer, END].max(initial=0)))
        if len(self.rows) > MOST_HELD:
            self.until_ns = int(self.rows[-1, END])
        return [(key, end_ns, 1) for key, end_ns in ends]

    def done(self) -> tuple[IntArray, list[Backward]]:
        """Return what ended by now, and forget it."""
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
        self._widen(start, end, rows[:, KEY] == OPTIMIZER_KEY, len(rows))
        order = np.lexsort((-end, start))
        start, end, kind = start[order], end[order], kind[order]
        named = np.where(rows[:, KEY] == STEP_KEY, rows[:, TASK], rows[:, KEY])
        key = np.concatenate((named, np.zeros(len(calls), dtype=np.int64)))[order]
        size = np.concatenate((rows[:, SEQ1] - rows[:, SEQ0], np.zeros(len(calls), dtype=np.int64)))[order]
        above = enclosing(start, end)
        inside = np.flatnonzero(above != NOBODY)
        own_ns = end - start - np.bincount(above[inside], (end - start)[inside], len(start)).astype(np.int64)
        top = _tops(above, kind)
        self._name_gradients(kind, key, top)
        return _Items(kind, key, start, end, np.maximum(own_ns, 0), top, size > 0, size == FAILED_SIZE)

    def _widen(self, start: IntArray, end: IntArray, optimizers: NDArray[np.bool_], rows: int) -> None:
        """Add torch's own work around optimizer steps and backward calls to theirs, in place."""
        margins, gradients = self.log.margins, np.arange(rows, len(start))
        for which, before_ns, after_ns in (
            (np.flatnonzero(optimizers), margins.optimizer_before_ns, margins.optimizer_after_ns),
            (gradients, margins.backward_before_ns, 0.0),
        ):
            if len(which):
                start[which], end[which] = widen(start[which], end[which], (start, end), before_ns, after_ns)

    def _name_gradients(self, kind: IntArray, key: IntArray, top: IntArray) -> None:
        """Give each backward call the key of the outermost call before it."""
        outer = np.flatnonzero((kind == _CALL) | (top == np.arange(len(top))))
        gradients = np.flatnonzero(kind == _GRADIENT)
        before = np.searchsorted(outer, gradients) - 1
        key[gradients] = np.where(before >= 0, key[outer[before]] if len(outer) else 0, self.outer)
        self.outer = int(key[outer[-1]]) if len(outer) else self.outer

    def pairs(self) -> list[tuple[int, IntArray]]:
        """Return new steps whose bounds are known, first those that were traced, as start_ns and end_ns."""
        found = []
        for number, noted in enumerate((self.log.traced, self.log.skeletons)):
            flat = np.array(noted[:], dtype=np.int64)
            both = flat[: len(flat) // 2 * 2].reshape(-1, 2)
            found.append((number, both[(both[:, 0] >= self.pairs_ns) & (both[:, 1] <= self.until_ns)]))
        self.pairs_ns = max((int(both[-1, 1]) for _, both in found if len(both)), default=self.pairs_ns)
        return found


def _kinds(rows: IntArray) -> IntArray:
    module = rows[:, KEY] > 0
    found = np.full(len(rows), _OWN, dtype=np.int64)
    found[module] = _FORWARD
    found[module & (rows[:, TASK] >= 0)] = _BACKWARD
    found[module & (rows[:, TASK] <= LIGHT_TASK)] = _CALL
    found[rows[:, KEY] == STEP_KEY] = _STEP
    return found


def _tops(above: IntArray, kind: IntArray) -> IntArray:
    """Return the outermost logged call around each call of a module, itself where there is none."""
    top = np.where(kind == _FORWARD, np.arange(len(kind)), NOBODY)
    inner = (kind == _FORWARD) & (above != NOBODY) & (kind[above] == _FORWARD)
    while True:
        further = np.where(inner, top[above], top)
        if np.array_equal(further, top):
            return top
        top = further


class Tally:
    """Reads the logs that a tracer may see.

    Args:
        hub: Where modules and devices are known.
        own: The log of the tracer's own thread, whose steps are counted.
        logs: Returns those of all threads that belong to the session.
        marked: Returns how many steps the user marked; None where steps are to be found.
        start_ns: When the session began.
        given: Key of the model that the user named.
    """

    def __init__(
        self,
        hub: Hub,
        own: Log,
        logs: Callable[[], Iterable[Log]],
        marked: Callable[[], int | None] = lambda: None,
        *,
        start_ns: int,
        given: int | None = None,
    ) -> None:
        self._hub, self._own, self._given = hub, own, given
        self._logs, self._marked = logs, marked
        self._threads: dict[Log, _Thread] = {own: _Thread(own, from_start=False)}
        self._frontier_ns = start_ns
        self._count = StepCount(start_ns)
        self._patterns: dict[Kind, _Pattern] = defaultdict(_Pattern)
        self._varying: set[int] = set()  # modules that outermost calls do not always call as often
        self._sizes: dict[int, int] = {}  # parameters of the modules that were called outside any other
        self._trained = False
        self._optimizers: set[int] = set()  # keys of those that step on the own thread
        self._names, self._named = Names(), (0, 0, 0)
        self._devices: dict[str, dict[Slot, float]] = {}
        self._device_windows = 0
        self.steps = 0
        self.touched = 0  # rows, calls and entries that the last update went through

    def update(self, now_ns: int) -> Stretch | None:
        """Read what is new, and return what ran since the last stretch; None while no call and no step has ended."""
        self.touched = 0
        roots = np.array([root.key for root in self._hub.registry.roots], dtype=np.int64)
        for log in self._logs():
            if log not in self._threads:
                self._threads[log] = _Thread(log, from_start=True)
        ends = {thread: thread.read(roots) for thread in self._threads.values()}
        end_ns = max(thread.until_ns for thread in self._threads.values())
        found = Stretch(self._frontier_ns, max(end_ns, self._frontier_ns))
        news: list[News] = []
        for thread in self._threads.values():
            rows, calls = thread.done()
            items = thread.items(rows, calls)
            self.touched += len(items.kind)
            self._book(items, found)
            self._study(thread, items, calls)
            if thread.log is self._own:
                news.append(self._news(items, ends))
                found.pauses += _pauses(items)
        self._count.add(news[0], now_ns)
        marked = self._marked()
        self.steps = self._count.count() if marked is None else marked
        self.touched += self._count.looked_at
        if found.end_ns <= self._frontier_ns:
            return None
        self._frontier_ns = found.end_ns
        _fit(found)
        return found

    def steps_now(self) -> int | None:
        """Return how many steps have ended by now, without reading anything; None where only an update can tell."""
        marked = self._marked()
        if marked is not None:
            return marked
        each = self._count.steps_per_end
        if not each:
            return None
        logs = [self._threads[self._own]] if self._optimizers else list(self._threads.values())
        return self.steps + int(each * sum(thread.reader.waiting() for thread in logs))

    def open(self, now_ns: int) -> Stretch:
        """Return what ran since the latest stretch, as far as it is known: calls that have not ended are a gap."""
        found = Stretch(self._frontier_ns, max(now_ns, self._frontier_ns))
        for thread in self._threads.values():
            outer = thread.outer
            self._book(thread.items(thread.rows, thread.calls), found)
            thread.outer = outer
        _fit(found)
        return found

    def close(self) -> None:
        """Read no more."""
        for thread in self._threads.values():
            thread.log.forget_reader(thread.reader)

    @staticmethod
    def _book(items: _Items, found: Stretch) -> None:
        for number, phase in ((_FORWARD, FORWARD), (_BACKWARD, BACKWARD)):
            which = np.flatnonzero(items.kind == number)
            found.ns.add_modules(phase, _by_key(items.key[which], items.own_ns[which]))
            found.calls.add_modules(phase, _by_key(items.key[which]))
        for kind, ns, count in _by_kind(items, np.flatnonzero(items.kind >= _CALL)):
            found.ns.rest[kind] += ns
            found.calls.rest[kind] += count
        if len(items.start):
            found.first_ns = min(found.first_ns or int(items.start[0]), int(items.start[0]))
            found.last_ns = max(found.last_ns, int(items.end.max()))

    def _study(self, thread: _Thread, items: _Items, calls: Sequence[Backward]) -> None:
        """Learn how calls and steps are divided from those that were seen inside."""
        inside = np.flatnonzero(items.top != NOBODY)
        top = items.top[inside]
        for outer in np.unique(items.key[top]).tolist():
            which = inside[items.key[top] == outer]
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
            others = [log.table() for log in self._threads if log is not thread.log]
            lanes = join(call, thread.log.table(), others)
            call.cache["lanes"] = [np.array(lane, dtype=np.int64).reshape(-1, 4) for lane in lanes]
        at = np.flatnonzero((items.kind == _GRADIENT) & (items.end == call.end_ns))
        if not call.cache["lanes"] or not len(at):
            return
        pieces = call.cache["lanes"][0]
        self.touched += len(pieces)
        pieces = pieces[np.lexsort((-pieces[:, 1], pieces[:, 0]))]
        above = enclosing(pieces[:, 0], pieces[:, 1])
        length = pieces[:, 1] - pieces[:, 0]
        inside = above != NOBODY
        own_ns = np.maximum(length - np.bincount(above[inside], length[inside], len(length)), 0)
        pattern, owned = self._patterns[GRADIENT, int(items.key[at[0]])], pieces[:, 2] > 0
        nodes = call.nodes if isinstance(call.nodes, Nodes) or call.nodes is None else call.nodes.nodes()
        began_ns = call.start_ns if nodes is None else int(nodes.start_ns.min())  # before that the window opens
        pattern.least(_by_key(pieces[owned, 2], own_ns[owned]), int(pieces[:, 1].max()) - began_ns)

    def _study_steps(self, pattern: _Pattern, bounds: IntArray, items: _Items) -> None:
        if not len(bounds):
            return
        step = np.minimum(np.searchsorted(bounds[:, 1], items.start, side="right"), len(bounds) - 1)
        within = (items.start >= bounds[step, 0]) & (items.start < bounds[step, 1]) & (items.kind != _STEP)
        apart = (items.kind == _OWN) & np.isin(items.key, (PROFILER_KEY, COMPILE_KEY))  # no other step has it
        inside = within & ~apart
        logged = np.flatnonzero(inside & (items.top != NOBODY))
        total = float(np.diff(bounds, axis=1).sum())
        for number in (_FORWARD, _BACKWARD):  # the modules of an outermost call are the call, as it is when not logged
            which = logged if number == _FORWARD else np.flatnonzero(inside & (items.kind == _BACKWARD))
            keys = items.key[items.top[which]] if number == _FORWARD else np.zeros(len(which), dtype=np.int64)
            for key in np.unique(keys).tolist():
                mine = which[keys == key]
                call: Kind = (CALL if number == _FORWARD else GRADIENT, key)
                pattern.ns.rest[call] += float(items.own_ns[mine].sum())
                pattern.calls.rest[call] += int((items.top[mine] == mine).sum())
        for kind, ns, count in _by_kind(items, np.flatnonzero(inside & (items.kind >= _CALL))):
            pattern.ns.rest[kind] += ns
            pattern.calls.rest[kind] += count
        pattern.count += len(bounds)
        pattern.ns.rest[OWN, 0] += max(total - float(items.own_ns[within].sum()), 0.0)

    def _news(self, items: _Items, ends: Mapping[_Thread, list[OptimizerEnd]]) -> News:
        outer = np.flatnonzero(((items.kind == _CALL) | (items.top == np.arange(len(items.top)))) & ~items.failed)
        key, grown = items.key[outer], items.grown[outer]
        self._trained |= bool(grown.any())
        one = np.ones(len(outer), dtype=np.int64)
        calls = Calls(items.start[outer], items.end[outer], one, grown, np.isin(key, self._main(key)), one)
        bounds = np.column_stack((items.start, items.end))
        own = next(each for thread, each in ends.items() if thread.log is self._own)
        self._optimizers.update(key for key, *_ in own)
        optimizers: list[list[OptimizerEnd]] = list(ends.values())
        if self._optimizers:
            ours = (each for some in ends.values() for each in some if each[0] in self._optimizers)
            optimizers = [sorted(ours, key=lambda each: each[1])]
        gradients, steps = bounds[items.kind == _GRADIENT], bounds[items.kind == _STEP]
        if not any(optimizers):  # of which only the end was noted, and a backward call ended them
            whole = steps[[not self._is_part(task) for task in items.key[items.kind == _STEP].tolist()]]
            start, end = whole.T
            calls = calls.with_training(start, end - 1, np.ones(len(whole), dtype=np.int64))
            gradients = np.concatenate((gradients, np.column_stack((end - 1, end))))
            gradients = gradients[np.argsort(gradients[:, 0], kind="stable")]
        return News(calls, gradients, steps, optimizers)

    def _is_part(self, task: int) -> bool:
        """Say of a step of which only the end was noted, by the task of its row, whether it ended before its time."""
        return bool(self._hub.signatures.of[LIGHT_TASK - task].part)

    def _main(self, called: IntArray) -> list[int]:
        """Return which modules are models, of those that were called outside any other."""
        for key in np.unique(called).tolist():
            if key not in self._sizes:
                self._sizes[key] = _params(self._hub, key)
        main = self._names.main if self._given is None else self._names.main | {self._given}
        return list(models_among(self._sizes, main, trained=self._trained))

    def names(self, *sums: Sums) -> Names:
        """Return the names of the modules; found anew where there are others than the last time."""
        every = [*sums, *(pattern.ns for pattern in self._patterns.values())]
        parts = [part for each in every for part in each.of_modules.values()]
        calls = {key for each in every for kind, key in each.rest if kind == CALL}
        calls |= {key for kind, key in self._patterns if kind == CALL}
        used = np.zeros(max([len(part) for part in parts] + [key + 1 for key in calls]), dtype=np.bool_)
        for part in parts:
            used[: len(part)] |= part > 0
        used[list(calls)] = True
        registry = self._hub.registry
        known = len(registry.roots), len(registry.facts), int(used.sum())
        if known != self._named or registry.dirty:
            if registry.dirty:
                registry.refresh()
            self._names = resolve(registry.roots, registry.facts, np.flatnonzero(used), self._given)
            self._named = known
        return self._names

    def spread(self, sums: Sums) -> Sums:
        """Return sums in which calls and steps are divided among what ran in them, as far as that was seen."""
        self.names(sums)  # by which alike modules are told
        found = Sums.of(sums.of_modules, {})
        rest = dict(sums.rest)
        steps = rest.pop((STEP, 0), 0.0)
        pattern = self._patterns[STEP, 1] if self._patterns[STEP, 1].count else self._patterns[STEP, 0]
        shares = pattern.ns.rest if pattern.ns.total() > 0 else {(OWN, 0): 1.0}
        whole = sum(shares.values())
        for each, part in shares.items():
            rest[each] = rest.get(each, 0.0) + steps * part / whole
        for (kind, key), amount in rest.items():
            inside = self._inside(kind, key)
            if inside is not None:
                found.add(inside, amount / inside.total())
            elif kind == CALL:
                found.add_modules(FORWARD, _only(key, amount))
            else:
                found.rest[kind, key] += amount
        return found

    def _inside(self, kind: str, key: int) -> Sums | None:
        """Return how calls of a kind are divided; of backward calls, else as those of any."""
        known = self._patterns.get((kind, key))
        if kind == GRADIENT and (known is None or not known.count):
            known = next((each for (name, _), each in self._patterns.items() if name == GRADIENT and each.count), None)
        if known is None or known.ns.total() <= 0:
            return None
        return self._calm(known.ns) if kind == GRADIENT else known.ns

    def _calm(self, ns: Sums) -> Sums:
        """Cut what one of many alike modules has far more of than the others: another program ran in its few calls."""
        found = Sums.of(ns.of_modules, ns.rest)
        amounts = found.of_modules[BACKWARD]
        alike: dict[object, list[int]] = defaultdict(list)
        for key in np.flatnonzero(amounts).tolist():
            alike[self._hub.registry.facts.get(key), re.sub(r"\d+", "#", self._names.of(key))].append(key)
        for keys in alike.values():
            if len(keys) >= MANY_ALIKE:
                amounts[keys] = np.minimum(amounts[keys], FAR_MORE * np.median(amounts[keys]))
        return found

    def device_shares(self, device: str) -> Mapping[Slot, float]:
        """Return ns by what a device was seen doing, and not doing, in the windows in which it was watched."""
        watch = self._hub.devices
        if watch is None:
            return {}
        windows = watch.windows()
        for window in windows[self._device_windows :]:
            for activity in window:
                self.touched += len(activity)
                _add_activity(self._devices.setdefault(activity.device, defaultdict(float)), activity)
        self._device_windows = len(windows)
        found: dict[Slot, float] = defaultdict(float)
        for slot, ns in self._devices.get(device, {}).items():
            key = slot.fqn.removeprefix(KEY_MARK)
            named = slot.fqn.startswith(KEY_MARK) and key.isdecimal()
            found[Slot(self._names.of(int(key)), slot.phase) if named else slot] += ns
        return found

    def calls_of(self, calls: Sums) -> dict[int, int | None]:
        """Return how often each module was called; None where that is not known of all calls."""
        found = Sums()
        found.add_modules(FORWARD, calls.of_modules[FORWARD])
        unseen: set[int] = set()
        rest = dict(calls.rest)
        steps, pattern = rest.pop((STEP, 0), 0.0), self._patterns[STEP, 1]
        pattern = pattern if pattern.count else self._patterns[STEP, 0]
        for (kind, key), count in pattern.calls.rest.items():
            rest[kind, key] = rest.get((kind, key), 0.0) + steps * count / pattern.count
        for (kind, key), count in rest.items():
            if kind == CALL and count:
                known = self._patterns.get((CALL, key))
                if known is None or not known.count:
                    found.add_modules(FORWARD, _only(key, count))
                else:
                    found.add(Sums.of({FORWARD: known.calls.of_modules[FORWARD]}, {}), count / known.count)
                    unseen.update(self._varying)
        counts = found.of_modules[FORWARD]
        return {key: None if key in unseen else round(counts[key]) for key in np.flatnonzero(counts).tolist()}

    def slots(self, sums: Sums) -> dict[Slot, float]:
        """Return what sums are of which calls and steps were divided, by the names of the report."""
        names, found = self.names(sums), dict[Slot, float]()
        amounts = (
            (self._slot(phase, key, names), float(part[key]))
            for phase, part in sums.of_modules.items()
            for key in np.flatnonzero(part).tolist()
        )
        for slot, amount in (*amounts, *((self._slot(*kind, names), each) for kind, each in sums.rest.items())):
            found[slot] = found.get(slot, 0.0) + amount
        return found

    def _slot(self, kind: str, key: int, names: Names) -> Slot:
        if kind in {FORWARD, BACKWARD}:
            return Slot(names.of(key), "backward" if kind == BACKWARD else "forward")
        if kind == OWN and key <= FIRST_SCOPE_KEY:
            return Slot(next((name for name, at in self._hub.scopes.items() if at == key), UNATTRIBUTED), "other")
        if kind == GRADIENT:
            return Slot(UNATTRIBUTED, "backward")
        return RESERVED_SLOTS.get(key, Slot(UNATTRIBUTED, "other"))


def _by_kind(items: _Items, which: IntArray) -> Iterator[tuple[Kind, float, int]]:
    """Yield what is no logged call of a module: kind, ns of its own, and how many."""
    both, number = np.unique(np.column_stack((items.kind, items.key))[which], axis=0, return_inverse=True)
    ns = np.bincount(number.ravel(), items.own_ns[which], len(both))
    count = np.bincount(number.ravel(), minlength=len(both))
    for (kind, key), own_ns, n in zip(both.tolist(), ns.tolist(), count.tolist(), strict=True):
        name = _KINDS[kind]
        yield (name, 0 if name == STEP else key), own_ns, n


def _add_activity(sums: dict[Slot, float], activity: Activity) -> None:
    """Add how long a device was busy with what in a window, and how long it was not busy."""
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
    """Return what ns of calls are multiplied by: all count alike but those that are long, cold or interrupted ones."""
    return 1.0 / np.maximum(length_ns, 1).astype(np.float64) ** 2


def _pauses(items: _Items) -> list[tuple[int, int]]:
    """Return the long stretches between the intervals of a thread."""
    reach = np.maximum.accumulate(items.end)[:-1]
    long = np.flatnonzero(items.start[1:] - reach >= PAUSE_NS)
    return list(zip(reach[long].tolist(), items.start[1:][long].tolist(), strict=True))


def _by_key(key: IntArray, weights: IntArray | FloatArray | None = None) -> FloatArray:
    """Return sums of weights, or how many there are, with a place for each key from 0 on."""
    return np.asarray(np.bincount(key, weights), dtype=np.float64)


def _only(key: int, amount: float) -> FloatArray:
    found = np.zeros(key + 1)
    found[key] = amount
    return found


def _fit(found: Stretch) -> None:
    """Let what ran be as long as the stretch: threads that work at the same time share it; the rest is a gap."""
    length_ns, ran_ns = found.end_ns - found.start_ns, found.ns.total()
    if ran_ns > length_ns:
        whole = Sums()
        whole.add(found.ns, length_ns / ran_ns)
        found.ns = whole
    found.gap_ns = max(length_ns - ran_ns, 0.0)


def _params(hub: Hub, key: int) -> int:
    """Return the parameters of a module and all below it, or of the modules that a compiled function names."""
    named = hub.compiled_calls.named.get(key)
    if named is not None:
        return named[1]
    registry = hub.registry
    root = next((root for root in registry.roots if root.key == key), None)
    below = {key} if root is None else {own for _, own in root.paths}
    return sum(registry.facts[own].params for own in below if own in registry.facts)
