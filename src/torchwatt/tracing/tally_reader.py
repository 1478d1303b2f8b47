"""Read new entries of thread logs as intervals, and sum them by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.intervals import NO_INDEX, enclosing_array
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.aggregated_spans import widen_rows
from torchwatt.tracing.log_rows import (
    END,
    FAILED_SIZE,
    FORWARD_TASK,
    KEY,
    NO_ROWS,
    OUTERMOST_TASK,
    PROFILER_KEY,
    SEQ0,
    SEQ1,
    START,
    STEP_KEY,
    TASK,
    BackwardCall,
)
from torchwatt.tracing.loop_steps import (
    NO_STRETCH,
    LoopEvidence,
    OptimizerEnd,
    OutermostCalls,
    StepMark,
    evaluations_of,
    marks_of,
)

if TYPE_CHECKING:
    from torchwatt.tracing.log_rows import LogReader
    from torchwatt.tracing.thread_log import ThreadLog


PAUSE_NS = 500_000_000  # between two calls: long enough for the process's CPU time to show whether anything ran
MOST_WAITING = 50_000  # rows of calls that have not ended; beyond, ended rows are counted
# What time is booked to: a name, and a key of the registry, or 0.
Kind = tuple[str, int]
FORWARD, BACKWARD = "forward", "backward"  # a module itself, in a call whose modules were logged
CALL, GRADIENT, STEP = "call", "gradient", "step"  # an outermost call, a backward call, a step, without inner records
OWN = "own"  # other rows, by their key; 0: not logged


class TimeSums:
    """Amounts by kind: of modules as arrays indexed by key, of others by name."""

    def __init__(self) -> None:
        self.of_modules: dict[str, FloatArray] = {FORWARD: np.zeros(0), BACKWARD: np.zeros(0)}
        self.rest: dict[Kind, float] = defaultdict(float)

    @classmethod
    def of(cls, of_modules: Mapping[str, FloatArray], of_others: Mapping[Kind, float]) -> TimeSums:
        """Return the sums of these amounts."""
        sums = cls()
        for phase, amounts in of_modules.items():
            sums.add_modules(phase, amounts)
        sums.rest.update(of_others)
        return sums

    def add(self, sums: TimeSums, factor: float = 1.0) -> None:
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
class WorkInterval:
    """Work between two instants: ns by kind; with `gap_ns` as long as the interval."""

    start_ns: int
    end_ns: int
    ns: TimeSums = field(default_factory=TimeSums)
    calls: TimeSums = field(default_factory=TimeSums)
    gap_ns: float = 0.0  # without any record
    pauses: list[tuple[int, int]] = field(default_factory=list)  # long gaps of the own thread
    first_ns: int = 0  # start of the first record; 0 without any
    last_ns: int = 0  # end of the last record


@dataclass(slots=True, eq=False)
class CallDivision:
    """The division of calls of one kind, from those with inner records."""

    ns: TimeSums = field(default_factory=TimeSums)
    calls: TimeSums = field(default_factory=TimeSums)
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
class LogIntervals:
    """Intervals of one thread, sorted, outer before inner."""

    kind: IntArray  # a number as above
    key: IntArray  # of the registry; of a step, its row's task, with the signature
    start: IntArray
    end: IntArray
    own_ns: IntArray  # without nested intervals
    top: IntArray  # index of the outermost logged call around a module call; -1 for others
    grown: NDArray[np.bool_]  # made a graph for a backward pass
    failed: NDArray[np.bool_]  # raised


class LogTally:
    """What was read of one log."""

    def __init__(self, log: ThreadLog, *, from_start: bool) -> None:
        self.log = log
        self.reader: LogReader = log.reader(from_start=from_start)
        self.rows: IntArray = NO_ROWS  # read and not booked yet
        self.calls: list[BackwardCall] = []
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
        if len(self.rows) > MOST_WAITING:
            self.until_ns = int(self.rows[-1, END])
        return [(key, end_ns, 1) for key, end_ns in ends]

    def done(self) -> tuple[IntArray, list[BackwardCall]]:
        """Return and drop the entries that have ended."""
        late = len(self.rows) - int(np.searchsorted(self.rows[:, END], self.until_ns, side="right"))
        rows, self.rows = self.rows[: len(self.rows) - late], self.rows[len(self.rows) - late :]
        calls = [call for call in self.calls if call.end_ns <= self.until_ns]
        self.calls = self.calls[len(calls) :]
        return rows, calls

    def items(self, rows: IntArray, calls: Sequence[BackwardCall]) -> LogIntervals:
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
        above = enclosing_array(start, end)
        nested = np.flatnonzero(above != NO_INDEX)
        own_ns = end - start - np.bincount(above[nested], (end - start)[nested], len(start)).astype(np.int64)
        top = outermost_of(above, kind)
        self._name_gradients(kind, key, top)
        return LogIntervals(kind, key, start, end, np.maximum(own_ns, 0), top, size > 0, size == FAILED_SIZE)

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
    codes[module & (rows[:, TASK] <= OUTERMOST_TASK)] = _CALL
    codes[rows[:, KEY] == STEP_KEY] = _STEP
    return codes


def outermost_of(above: IntArray, kind: IntArray) -> IntArray:
    """Return the outermost logged call around each call of a module, else the call itself."""
    top = np.where(kind == _FORWARD, np.arange(len(kind)), NO_INDEX)
    inner = (kind == _FORWARD) & (above != NO_INDEX) & (kind[above] == _FORWARD)
    while True:
        further = np.where(inner, top[above], top)
        if np.array_equal(further, top):
            return top
        top = further


def _by_kind(items: LogIntervals, which: IntArray) -> Iterator[tuple[Kind, float, int]]:
    """Yield the kind, own ns and number of intervals other than logged module calls."""
    kind_and_key, number = np.unique(np.column_stack((items.kind, items.key))[which], axis=0, return_inverse=True)
    ns = np.bincount(number.ravel(), items.own_ns[which], len(kind_and_key))
    count = np.bincount(number.ravel(), minlength=len(kind_and_key))
    for (kind, key), own_ns, n in zip(kind_and_key.tolist(), ns.tolist(), count.tolist(), strict=True):
        name = _KINDS[kind]
        yield (name, 0 if name == STEP else key), own_ns, n


def _weight(length_ns: IntArray) -> FloatArray:
    """Return weights of calls, 1 / length^2: long calls, cold or interrupted, have little weight."""
    return 1.0 / np.maximum(length_ns, 1).astype(np.float64) ** 2


def _pauses(items: LogIntervals) -> list[tuple[int, int]]:
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


def _fit(stretch: WorkInterval) -> None:
    """Scale the work to at most the length of the stretch: concurrent threads share it; the remainder is a gap."""
    length_ns, ran_ns = stretch.end_ns - stretch.start_ns, stretch.ns.total()
    if ran_ns > length_ns:
        scaled = TimeSums()
        scaled.add(stretch.ns, length_ns / ran_ns)
        stretch.ns = scaled
    stretch.gap_ns = max(length_ns - ran_ns, 0.0)


MOST_ROUNDS = 64  # rounds that are evaluated again: later entries may change them
MOST_CALLS = 2_048  # outermost calls that are evaluated again; beyond, neighbours are merged


@dataclass(frozen=True, slots=True, eq=False)
class NewEntries:
    """New entries of a loop; fields as in `LoopEvidence`, sorted by time."""

    calls: OutermostCalls
    backward_ns: IntArray
    unseen_ns: IntArray
    optimizers: Sequence[Sequence[OptimizerEnd]]  # of each thread that ends these steps


class StepCounter:
    """Counts steps as `steps_of` does; entries before the last `MOST_ROUNDS` rounds are counted once and dropped."""

    def __init__(self, start_ns: int) -> None:
        self._settled = 0
        none = np.zeros(0, dtype=np.int64)
        no_calls = OutermostCalls(
            none, none, none, none.astype(np.bool_), none.astype(np.bool_), none, none.astype(np.bool_)
        )
        self._seen = LoopEvidence(start_ns, start_ns, none, no_calls, NO_STRETCH, none, none.astype(np.bool_))
        self.looked_at = 0  # entries that the last count evaluated
        self.steps_per_end = 0.0  # per optimizer step, recently; 0 where no optimizer ends steps

    def add(self, news: NewEntries, end_ns: int) -> None:
        """Add the entries until `end_ns`."""
        entries, new = self._seen, news.calls
        calls = OutermostCalls(
            *(np.concatenate(pair) for pair in zip(_columns(entries.calls), _columns(new), strict=True))
        )
        backward_ns = np.concatenate((entries.backward_ns, news.backward_ns))
        forward = np.searchsorted(np.sort(calls.start_ns[calls.grown]), backward_ns[:, 0])
        ends = dict(enumerate(entries.optimizers)) | {
            i: [*(entries.optimizers[i] if i < len(entries.optimizers) else ()), *each]
            for i, each in enumerate(news.optimizers)
        }
        self._seen = replace(
            entries,
            end_ns=end_ns,
            calls=_merge_calls(calls, np.sort(backward_ns[:, 0])) if len(calls) > MOST_CALLS else calls,
            backward_ns=backward_ns,
            backward_count=np.ones(len(backward_ns), dtype=np.int64),
            backward_again=np.diff(forward, prepend=-1) == 0,
            unseen_ns=np.concatenate((entries.unseen_ns, news.unseen_ns)),
            starts_ns=np.sort(np.concatenate((calls.start_ns, backward_ns[:, 0]))),
            optimizers=[ends[i] for i in sorted(ends)] if any(ends.values()) else (),
        )

    def count(self) -> int:
        """Return the number of steps so far."""
        entries = self._seen
        self.looked_at = len(entries.calls) + len(entries.backward_ns) + sum(map(len, entries.optimizers))
        marks = marks_of(entries)
        if marks is None:
            return self._settled + int(entries.calls.count[entries.calls.main].sum())
        ends = sum(map(len, entries.optimizers))
        self.steps_per_end = len(marks) / ends if ends else 0.0
        evaluations = evaluations_of(entries, marks)
        total = self._settled + sum(n for _, n in marks) + int(evaluations.count.sum())
        if len(marks) > 2 * MOST_ROUNDS:
            self._settle(marks, evaluations)
        return total

    def _settle(self, marks: Sequence[StepMark], evaluations: OutermostCalls) -> None:
        entries, until_ns = self._seen, marks[-MOST_ROUNDS][0]
        self._settled += sum(n for end_ns, n in marks if end_ns <= until_ns)
        self._settled += int(evaluations.count[evaluations.start_ns < until_ns].sum())
        later = entries.backward_ns[:, 0] >= until_ns
        self._seen = replace(
            entries,
            origin_ns=until_ns,
            calls=entries.calls.take(entries.calls.start_ns >= until_ns),
            backward_ns=entries.backward_ns[later],
            backward_count=entries.backward_count[later],
            backward_again=entries.backward_again[later],
            unseen_ns=entries.unseen_ns[entries.unseen_ns[:, 1] > until_ns],
            optimizers=[[end for end in ends if end[1] > until_ns] for ends in entries.optimizers],
        )


def _columns(calls: OutermostCalls) -> tuple[np.ndarray, ...]:
    return calls.start_ns, calls.end_ns, calls.count, calls.grown, calls.main, calls.rounds, calls.inside


def _merge_calls(calls: OutermostCalls, backward_ns: IntArray) -> OutermostCalls:
    """Merge similar neighbours without a backward call between them, except the latest `MOST_ROUNDS`."""
    old = len(calls) - MOST_ROUNDS
    between = np.searchsorted(backward_ns, calls.start_ns[:old])
    change = (np.diff(between) != 0) | (np.diff(calls.grown[:old]) != 0) | (np.diff(calls.main[:old]) != 0)
    starts = np.concatenate(([0], np.flatnonzero(change) + 1, np.arange(old, len(calls))))
    ends = np.append(starts[1:], len(calls)) - 1
    count = np.add.reduceat(calls.count, starts)
    columns = calls.grown[starts], calls.main[starts], calls.rounds[starts], calls.inside[starts]
    return OutermostCalls(calls.start_ns[starts], calls.end_ns[ends], count, *columns)
