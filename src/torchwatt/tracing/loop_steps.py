"""Find the steps of the program's main loop from recorded calls. Pure.

docs/steps.md defines a step: the user's own marks; else a round of the optimizers; else, where there are backward
calls, the time from one forward call to the next one that follows a backward call; else a call of a model. In training,
a call of the model without gradients is a separate step, unless rounds begin with such calls.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import INFERENCE, TRAIN, VALIDATION

OptimizerEnd = tuple[int, int, int]  # key, end_ns, number of steps that end there
StepMark = tuple[int, int]  # end_ns, number of steps that end there

MOST_PERIOD = 4  # optimizer steps per round of a loop that calls the model between them (a GAN, actor and critic)
REGULAR = 0.9  # share of the steps that follow the period
# Optimizers that step at random step twice between two steps of another one as often as chance predicts.
ENOUGH_REPEATS, FEW_REPEATS = 6.0, 0.02
MAX_ENDS = 20_000
NO_INTERVALS: IntArray = np.zeros(0, dtype=np.int64)
NO_STRETCH: IntArray = np.zeros((0, 2), dtype=np.int64)


class OptimizerEnds:
    """Ends of the steps of all optimizers of one thread; in a long run neighbours are merged."""

    def __init__(self, most_entries: int = MAX_ENDS) -> None:
        self._most = most_entries
        self._columns = array("q"), array("q"), array("q")

    def extend(self, ends: Iterable[tuple[int, int]]) -> None:
        """Record ends (key of the optimizer, end_ns), in order of time."""
        keys, times, counts = self._columns
        for key, end_ns in ends:
            keys.append(key)
            times.append(end_ns)
            counts.append(1)
        if len(keys) > 2 * self._most:
            self._put_together()

    def entries(self) -> list[OptimizerEnd]:
        """Return key, end_ns and number of steps of each entry."""
        return list(zip(*self._columns, strict=False))  # another thread may be adding one

    def _put_together(self) -> None:
        entries = self.entries()
        older, newer = entries[: self._most], entries[self._most :]
        lead = Counter(key for key, *_ in older).most_common(1)[0][0]
        steps = find_rounds(older)
        pairs = [(lead, end, a + b) for (_, a), (end, b) in zip(steps[::2], steps[1::2], strict=False)]
        if len(steps) % 2:
            pairs.append((lead, *steps[-1]))
        self._columns = tuple(array("q", column) for column in zip(*pairs, *newer, strict=True))  # type: ignore[assignment]


def find_rounds(
    ends: Sequence[OptimizerEnd], forward_ns: IntArray = NO_INTERVALS, unseen_ns: IntArray = NO_STRETCH
) -> list[StepMark]:
    """Return the ends of rounds, and how many rounds end there.

    The steps of two optimizers belong to one round if the model was not called between them (encoder and decoder, an
    optimizer per layer), if they alternate in a short cycle (a GAN), or if all others step at most once between two
    steps of one of them (a GAN that skips updates). A round has at most one step of each. Optimizers of which one
    finished before the other began (the phases of a fine-tuning, folds) share no round.

    Args:
        ends: Sorted by time.
        forward_ns: Starts of recorded calls of the model, sorted.
        unseen_ns: Intervals in which calls were not recorded, sorted; shape (n, 2).
    """
    if len({key for key, *_ in ends}) < 2:
        return [(end_ns, count) for _, end_ns, count in ends]
    first_ends: dict[int, int] = {}
    last_ends: dict[int, int] = {}
    for key, end_ns, _ in ends:
        first_ends.setdefault(key, end_ns)
        last_ends[key] = end_ns
    joined = _round_evidence(ends, forward_ns, unseen_ns)
    lead = _lead_optimizer([key for key, *_ in ends])
    leads_last = lead is not None and ends[0][0] != lead
    result: list[StepMark] = []
    members: set[int] = set()
    for i, (key, end_ns, count) in enumerate(ends):
        is_new_round = key in members or count > 1 or any(last_ends[member] < first_ends[key] for member in members)
        is_new_round |= leads_last and lead in members
        if members and not is_new_round and (joined(i) or lead is not None):
            result[-1] = end_ns, result[-1][1]
        else:
            members = set()
            result.append((end_ns, count))
        members.add(key)
    return result


class _RoundEvidence:
    """Whether an optimizer step may belong to the same round as the one before it."""

    def __init__(self, together: set[tuple[int, int]], keys: Sequence[int], *, cycle: bool) -> None:
        self._together = together
        self._keys = keys
        self._cycle = cycle

    def __call__(self, i: int) -> bool:
        return self._cycle or (self._keys[i - 1], self._keys[i]) in self._together


def _round_evidence(ends: Sequence[OptimizerEnd], forward_ns: IntArray, unseen_ns: IntArray) -> _RoundEvidence:
    keys = [key for key, *_ in ends]
    times = np.array([end_ns for _, end_ns, _ in ends], dtype=np.int64)
    between = np.diff(np.searchsorted(forward_ns, times), prepend=0)
    hidden = _overlap(unseen_ns, times)
    pair_counts: Counter[tuple[int, int]] = Counter()
    called: Counter[tuple[int, int]] = Counter()
    for i in range(1, len(keys)):
        pair_counts[keys[i - 1], keys[i]] += int(not hidden[i])
        called[keys[i - 1], keys[i]] += int(between[i] > 0)
    usually = 2 * called.total() < max(pair_counts.total(), 1)  # for pairs without observations
    together = {pair for pair, n in pair_counts.items() if (2 * called[pair] < n if n else usually)}
    return _RoundEvidence(together, keys, cycle=_is_cycle(keys))


def _overlap(unseen_ns: IntArray, times: IntArray) -> NDArray[np.bool_]:
    """Return for each instant whether an interval overlaps the time since the instant before."""
    before = np.searchsorted(unseen_ns[:, 0], times) - 1  # the latest interval that began earlier
    latest_end = np.append(unseen_ns[:, 1], np.iinfo(np.int64).min)[before]
    return np.asarray(latest_end > np.concatenate((times[:1], times[:-1])), dtype=np.bool_)


def _lead_optimizer(keys: Sequence[int]) -> int | None:
    """Return the optimizer (of at most `MOST_PERIOD`) between whose steps others rarely step twice, else None."""
    numbers = Counter(keys)
    for lead, n in numbers.most_common() if len(numbers) <= MOST_PERIOD else ():
        other_numbers = {key: k for key, k in numbers.items() if key != lead}
        by_chance = sum(k * k / (n + k) for k in other_numbers.values())
        if by_chance >= ENOUGH_REPEATS and _count_repeats(keys, lead) <= FEW_REPEATS * sum(other_numbers.values()):
            return lead
    return None


def _count_repeats(keys: Sequence[int], lead: int) -> int:
    """Return how often another optimizer steps again without a step of this one in between."""
    members: set[int] = set()
    twice = 0
    for key in keys:
        twice += key in members
        members = set() if key == lead else members | {key}
    return twice


def _is_cycle(keys: Sequence[int]) -> bool:
    """Return whether optimizers alternate in a cycle of a few steps."""
    sequence = np.array(keys, dtype=np.int64)
    for period in range(2, MOST_PERIOD + 1):
        if len(sequence) >= 2 * period and np.mean(sequence[period:] == sequence[:-period]) >= REGULAR:
            return True
    return False


NEVER: Mapping[int, int] = MappingProxyType({})
REGULAR_MORE = 2  # times the usual number of calls without gradients per round: more are an evaluation


@dataclass(frozen=True, slots=True)
class LoopStep:
    """One step, or in a long run several: `stage` is train, validation or inference.

    `named` is the number of the stage that the program named, where it is known from the calls; 0: not known.
    """

    start_ns: int
    end_ns: int
    count: int
    stage: str = ""
    named: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class OutermostCalls:
    """Outermost calls, one entry each, sorted by start; merged calls are one entry."""

    start_ns: IntArray
    end_ns: IntArray
    count: IntArray
    grown: NDArray[np.bool_]  # made a graph for a backward pass
    main: NDArray[np.bool_]  # of a model; where something is trained, of the largest
    rounds: IntArray  # number of rounds that an entry of several calls covers; else 1
    inside: NDArray[np.bool_]  # made no graph, after a call of the same round that made one
    named: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # numbers of stages; empty: all 0

    def take(self, which: NDArray[np.bool_] | IntArray) -> OutermostCalls:
        """Return some of the entries."""
        bounds, count = (self.start_ns[which], self.end_ns[which]), self.count[which]
        grown, main, within_round = self.grown[which], self.main[which], self.inside[which]
        named = self.named[which] if len(self.named) else self.named
        return OutermostCalls(*bounds, count, grown, main, self.rounds[which], within_round, named)

    def with_training(self, start_ns: IntArray, end_ns: IntArray, count: IntArray) -> OutermostCalls:
        """Return these entries and calls of the model that made a graph, sorted by start."""
        made_graph = np.ones(len(start_ns), dtype=np.bool_)
        start, end = np.concatenate((self.start_ns, start_ns)), np.concatenate((self.end_ns, end_ns))
        grown, main = np.concatenate((self.grown, made_graph)), np.concatenate((self.main, made_graph))
        rounds_, within_round = np.concatenate((self.rounds, count)), np.concatenate((self.inside, ~made_graph))
        named = np.concatenate((self.named, np.zeros(len(start_ns), dtype=np.int64))) if len(self.named) else self.named
        counts = np.concatenate((self.count, count))
        merged = OutermostCalls(start, end, counts, grown, main, rounds_, within_round, named)
        return merged.take(np.argsort(start, kind="stable"))

    def __len__(self) -> int:
        return len(self.start_ns)


@dataclass(frozen=True, slots=True, eq=False)
class LoopEvidence:
    """The records of one thread's loop inside a session."""

    origin_ns: int
    end_ns: int
    starts_ns: IntArray  # of all spans except profiler work, sorted
    calls: OutermostCalls
    backward_ns: IntArray  # start_ns and end_ns of backward calls, sorted; shape (n, 2)
    backward_count: IntArray
    backward_again: NDArray[np.bool_]  # not the first ones through their forward pass
    optimizers: Sequence[Sequence[OptimizerEnd]] = ()  # of each thread that ends these steps, sorted by time
    unseen_ns: IntArray = field(default_factory=lambda: NO_STRETCH)  # steps of which only the end was recorded
    marks: Sequence[StepMark] = ()  # the user's own
    resumed: Mapping[int, int] = field(default_factory=lambda: NEVER)


def steps_of(evidence: LoopEvidence) -> tuple[list[LoopStep], bool]:
    """Return the steps, sorted, and whether they are calls of the model, where nothing else marks steps."""
    if evidence.marks:
        steps = steps_between(evidence.marks, evidence.starts_ns, evidence.origin_ns, evidence.resumed)
        return _with_stages(steps, evidence), False
    marks = marks_of(evidence)
    if marks is not None:
        return _rounds_and_evaluations(evidence, marks), False
    return _model_calls(evidence.calls, INFERENCE), True


def marks_of(evidence: LoopEvidence) -> list[StepMark] | None:
    """Return the ends of training rounds; None without training."""
    if evidence.optimizers:
        forward_ns = evidence.calls.start_ns[evidence.calls.grown]
        return sorted(
            mark for ends in evidence.optimizers for mark in find_rounds(ends, forward_ns, evidence.unseen_ns)
        )
    return _backward_rounds(evidence) if len(evidence.backward_ns) else None


def steps_between(
    marks: Sequence[StepMark], starts_ns: IntArray, origin_ns: int, resumed: Mapping[int, int] = NEVER
) -> list[LoopStep]:
    """Return each step.

    A step begins with the first span that starts after the previous step's end (time in between, such as printing,
    belongs to no step), or at that end if there is no span.

    Args:
        marks: Ends of steps, sorted.
        starts_ns: Starts of all spans of the thread, sorted.
        origin_ns: Start of the session.
        resumed: By end of a step: its earliest start (after an evaluation, for example).
    """
    if not marks:
        return []
    ends, counts = np.array(marks, dtype=np.int64).T
    previous = np.concatenate(([origin_ns], ends[:-1]))
    if resumed:
        previous = np.maximum(previous, [resumed.get(end, 0) for end, _ in marks])
    following = np.append(starts_ns, np.iinfo(np.int64).max)[np.searchsorted(starts_ns, previous)]
    begins = np.where(following < ends, following, previous)
    return [LoopStep(*each) for each in zip(begins.tolist(), ends.tolist(), counts.tolist(), strict=True)]


def _with_stages(steps: Sequence[LoopStep], evidence: LoopEvidence) -> list[LoopStep]:
    """Set the stage of the user's own steps: training if a backward call or an optimizer step ended inside."""
    optimizers = np.array([end for ends in evidence.optimizers for _, end, _ in ends], dtype=np.int64)
    ends = np.sort(np.concatenate((evidence.backward_ns[:, 1], evidence.unseen_ns[:, 1], optimizers)))
    bounds = np.array([(step.start_ns, step.end_ns) for step in steps], dtype=np.int64).reshape(-1, 2)
    trained = np.searchsorted(ends, bounds[:, 1], side="right") > np.searchsorted(ends, bounds[:, 0], side="right")
    other_stage = VALIDATION if len(ends) else INFERENCE
    return [
        LoopStep(step.start_ns, step.end_ns, step.count, TRAIN if train else other_stage)
        for step, train in zip(steps, trained.tolist(), strict=True)
    ]


def _backward_rounds(evidence: LoopEvidence) -> list[StepMark]:
    """Return the ends of rounds without an optimizer: the next span's start after a round's last backward call."""
    start, end, count = evidence.backward_ns[:, 0], evidence.backward_ns[:, 1], evidence.backward_count
    before = np.searchsorted(evidence.calls.start_ns[evidence.calls.grown], start)
    is_end = np.append(np.diff(before) > 0, True)  # the last backward call before the model is called again
    groups = np.concatenate(([0], np.flatnonzero(is_end)[:-1] + 1))
    calls_of_round = np.add.reduceat(np.where(evidence.backward_again, 0, count), groups)
    ends, counts = end[is_end], np.where(calls_of_round > 0, calls_of_round, np.maximum.reduceat(count, groups))
    following = np.append(evidence.starts_ns, evidence.end_ns)[np.searchsorted(evidence.starts_ns, ends)]
    updates = np.maximum(following[:-1] - ends[:-1], 0)  # by hand, until the next span begins
    latest = ends[-1] + (int(np.median(updates)) if len(updates) else 0)
    following[-1] = min(following[-1], latest, evidence.end_ns)
    return list(zip(np.maximum(following, ends).tolist(), counts.tolist(), strict=True))


def _rounds_and_evaluations(evidence: LoopEvidence, marks: Sequence[StepMark]) -> list[LoopStep]:
    """Return the rounds as training steps, and evaluations between them as validation steps."""
    evaluations = evaluations_of(evidence, marks)
    ends = np.array([end for end, _ in marks], dtype=np.int64)
    resumed = dict(evidence.resumed)
    for at in evaluations.end_ns.tolist():
        after = int(np.searchsorted(ends, at))
        if after < len(ends):
            resumed[int(ends[after])] = at
    steps = steps_between(marks, evidence.starts_ns, evidence.origin_ns, resumed)
    train = [LoopStep(step.start_ns, step.end_ns, step.count, TRAIN) for step in steps]
    return sorted([*train, *_model_calls(evaluations, VALIDATION)], key=lambda step: step.start_ns)


def evaluations_of(evidence: LoopEvidence, marks: Sequence[StepMark]) -> OutermostCalls:
    """Return the calls outside rounds that evaluate the model."""
    calls, ends = evidence.calls, np.array([end for end, _ in marks], dtype=np.int64)
    gap = np.searchsorted(ends, calls.start_ns, side="right")  # a call in gap i comes before the end of round i
    # Of a merged entry only the start of the first call is known.
    began = calls.start_ns[calls.grown & (calls.count == 1)], evidence.backward_ns[evidence.backward_count == 1, 0]
    busy_ns = np.sort(np.concatenate(began))
    first_ns = np.append(busy_ns, np.iinfo(np.int64).max)[
        np.searchsorted(busy_ns, np.concatenate(([evidence.origin_ns], ends)))
    ]
    further = np.minimum(calls.rounds - 1, len(ends) - gap)
    leading = (calls.start_ns < first_ns[gap]) | (gap == len(ends)) | (further > 0)
    leading &= ~calls.grown & calls.main & ~calls.inside
    numbers = _calls_per_gap(gap[leading], further[leading], calls.count[leading], len(ends) + 1)
    usual = float(np.median(numbers[: len(ends)])) if len(ends) else 0.0
    if len(ends) and 2 * numbers[0] < usual:
        usual = 0.0  # the first round does not begin with such calls: they follow the rounds
    evaluates = numbers > REGULAR_MORE * usual
    evaluates[len(ends)] |= numbers[len(ends)] > usual
    # Calls after the last round lead to no update, with or without gradients.
    tail = calls.main & (gap == len(ends)) & ~_before_backward(calls, evidence.backward_ns)
    return calls.take((leading & evaluates[gap]) | (tail & evaluates[gap]) | (tail & calls.grown))


def _calls_per_gap(gap: IntArray, further: IntArray, count: IntArray, n: int) -> FloatArray:
    """Return the number of calls in each of `n` gaps, with merged calls divided evenly among their gaps."""
    each = count / (further + 1)
    changes = np.bincount(gap, each, n + 1) - np.bincount(gap + further + 1, each, n + 1)[: n + 1]
    return np.cumsum(changes)[:n]


def _before_backward(calls: OutermostCalls, backward_ns: IntArray) -> NDArray[np.bool_]:
    """Return for each call whether a backward call follows it."""
    last_ns = int(backward_ns[-1, 0]) if len(backward_ns) else np.iinfo(np.int64).min
    return np.asarray(calls.start_ns < last_ns, dtype=np.bool_)


def _model_calls(calls: OutermostCalls, stage: str) -> list[LoopStep]:
    """Return calls of models as steps."""
    main = calls.take(calls.main)
    named = main.named if len(main.named) else np.zeros(len(main), dtype=np.int64)
    columns = main.start_ns.tolist(), main.end_ns.tolist(), main.count.tolist(), named.tolist()
    return [LoopStep(start, end, n, stage, number) for start, end, n, number in zip(*columns, strict=True)]


def find_models(sizes: Mapping[int, int], main: Collection[int], *, trained: bool) -> set[int]:
    """Return the called modules that are models: those as large as the given one, where something is trained.

    If the given one is not called, the largest count; if none has parameters, all do.

    Args:
        sizes: Parameters of each called module, by key.
        main: Keys of the given model.
        trained: Whether a call made a graph.
    """
    largest = max(sizes.values(), default=0)
    model_sizes = [size for key, size in sizes.items() if key in main]
    least = min(model_sizes, default=largest) if trained or not largest else 1
    return {key for key, size in sizes.items() if size >= least}
