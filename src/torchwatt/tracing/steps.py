"""Find the steps of the program's main loop from recorded calls. Pure.

docs/steps.md defines a step: the user's own marks; else a round of the optimizers; else, where there are backward
calls, the time from one forward call to the next one that follows a backward call; else a call of a model. In training,
a call of the model without gradients is a separate step, unless rounds begin with such calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import INFERENCE, TRAIN, VALIDATION
from torchwatt.tracing.rounds import NO_STRETCH, Mark, OptimizerEnd, rounds

NEVER: Mapping[int, int] = MappingProxyType({})
REGULAR_MORE = 2  # times the usual number of calls without gradients per round: more are an evaluation


@dataclass(frozen=True, slots=True)
class Step:
    """One step, or in a long run several: `stage` is train, validation or inference."""

    start_ns: int
    end_ns: int
    count: int
    stage: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Calls:
    """Outermost calls, one entry each, sorted by start; merged calls are one entry."""

    start_ns: IntArray
    end_ns: IntArray
    count: IntArray
    grown: NDArray[np.bool_]  # made a graph for a backward pass
    main: NDArray[np.bool_]  # of a model; where something is trained, of the largest
    rounds: IntArray  # number of rounds that an entry of several calls covers; else 1
    inside: NDArray[np.bool_]  # made no graph, after a call of the same round that made one

    def take(self, which: NDArray[np.bool_] | IntArray) -> Calls:
        """Return some of the entries."""
        bounds, count = (self.start_ns[which], self.end_ns[which]), self.count[which]
        grown, main, within_round = self.grown[which], self.main[which], self.inside[which]
        return Calls(*bounds, count, grown, main, self.rounds[which], within_round)

    def with_training(self, start_ns: IntArray, end_ns: IntArray, count: IntArray) -> Calls:
        """Return these entries and calls of the model that made a graph, sorted by start."""
        made_graph = np.ones(len(start_ns), dtype=np.bool_)
        start, end = np.concatenate((self.start_ns, start_ns)), np.concatenate((self.end_ns, end_ns))
        grown, main = np.concatenate((self.grown, made_graph)), np.concatenate((self.main, made_graph))
        rounds_, within_round = np.concatenate((self.rounds, count)), np.concatenate((self.inside, ~made_graph))
        merged = Calls(start, end, np.concatenate((self.count, count)), grown, main, rounds_, within_round)
        return merged.take(np.argsort(start, kind="stable"))

    def __len__(self) -> int:
        return len(self.start_ns)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The records of one thread's loop inside a session."""

    origin_ns: int
    end_ns: int
    starts_ns: IntArray  # of all spans except profiler work, sorted
    calls: Calls
    backward_ns: IntArray  # start_ns and end_ns of backward calls, sorted; shape (n, 2)
    backward_count: IntArray
    backward_again: NDArray[np.bool_]  # not the first ones through their forward pass
    optimizers: Sequence[Sequence[OptimizerEnd]] = ()  # of each thread that ends these steps, sorted by time
    unseen_ns: IntArray = field(default_factory=lambda: NO_STRETCH)  # steps of which only the end was recorded
    marks: Sequence[Mark] = ()  # the user's own
    resumed: Mapping[int, int] = field(default_factory=lambda: NEVER)


def steps_of(evidence: Evidence) -> tuple[list[Step], bool]:
    """Return the steps, sorted, and whether they are calls of the model, where nothing else marks steps."""
    if evidence.marks:
        steps = steps_between(evidence.marks, evidence.starts_ns, evidence.origin_ns, evidence.resumed)
        return _with_stages(steps, evidence), False
    marks = marks_of(evidence)
    if marks is not None:
        return _rounds_and_evaluations(evidence, marks), False
    return _model_calls(evidence.calls, INFERENCE), True


def marks_of(evidence: Evidence) -> list[Mark] | None:
    """Return the ends of training rounds; None without training."""
    if evidence.optimizers:
        forward_ns = evidence.calls.start_ns[evidence.calls.grown]
        return sorted(mark for ends in evidence.optimizers for mark in rounds(ends, forward_ns, evidence.unseen_ns))
    return _backward_rounds(evidence) if len(evidence.backward_ns) else None


def steps_between(
    marks: Sequence[Mark], starts_ns: IntArray, origin_ns: int, resumed: Mapping[int, int] = NEVER
) -> list[Step]:
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
    return [Step(*each) for each in zip(begins.tolist(), ends.tolist(), counts.tolist(), strict=True)]


def _with_stages(steps: Sequence[Step], evidence: Evidence) -> list[Step]:
    """Set the stage of the user's own steps: training if a backward call or an optimizer step ended inside."""
    optimizers = np.array([end for ends in evidence.optimizers for _, end, _ in ends], dtype=np.int64)
    ends = np.sort(np.concatenate((evidence.backward_ns[:, 1], evidence.unseen_ns[:, 1], optimizers)))
    bounds = np.array([(step.start_ns, step.end_ns) for step in steps], dtype=np.int64).reshape(-1, 2)
    trained = np.searchsorted(ends, bounds[:, 1], side="right") > np.searchsorted(ends, bounds[:, 0], side="right")
    other_stage = VALIDATION if len(ends) else INFERENCE
    return [
        Step(step.start_ns, step.end_ns, step.count, TRAIN if train else other_stage)
        for step, train in zip(steps, trained.tolist(), strict=True)
    ]


def _backward_rounds(evidence: Evidence) -> list[Mark]:
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


def _rounds_and_evaluations(evidence: Evidence, marks: Sequence[Mark]) -> list[Step]:
    """Return the rounds as training steps, and evaluations between them as validation steps."""
    evaluations = evaluations_of(evidence, marks)
    ends = np.array([end for end, _ in marks], dtype=np.int64)
    resumed = dict(evidence.resumed)
    for at in evaluations.end_ns.tolist():
        after = int(np.searchsorted(ends, at))
        if after < len(ends):
            resumed[int(ends[after])] = at
    steps = steps_between(marks, evidence.starts_ns, evidence.origin_ns, resumed)
    train = [Step(step.start_ns, step.end_ns, step.count, TRAIN) for step in steps]
    return sorted([*train, *_model_calls(evaluations, VALIDATION)], key=lambda step: step.start_ns)


def evaluations_of(evidence: Evidence, marks: Sequence[Mark]) -> Calls:
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
    numbers = _spread(gap[leading], further[leading], calls.count[leading], len(ends) + 1)
    usual = float(np.median(numbers[: len(ends)])) if len(ends) else 0.0
    if len(ends) and 2 * numbers[0] < usual:
        usual = 0.0  # the first round does not begin with such calls: they follow the rounds
    evaluates = numbers > REGULAR_MORE * usual
    evaluates[len(ends)] |= numbers[len(ends)] > usual
    # Calls after the last round lead to no update, with or without gradients.
    tail = calls.main & (gap == len(ends)) & ~_before_backward(calls, evidence.backward_ns)
    return calls.take((leading & evaluates[gap]) | (tail & evaluates[gap]) | (tail & calls.grown))


def _spread(gap: IntArray, further: IntArray, count: IntArray, n: int) -> FloatArray:
    """Return the number of calls in each of `n` gaps, with merged calls divided evenly among their gaps."""
    each = count / (further + 1)
    changes = np.bincount(gap, each, n + 1) - np.bincount(gap + further + 1, each, n + 1)[: n + 1]
    return np.cumsum(changes)[:n]


def _before_backward(calls: Calls, backward_ns: IntArray) -> NDArray[np.bool_]:
    """Return for each call whether a backward call follows it."""
    last_ns = int(backward_ns[-1, 0]) if len(backward_ns) else np.iinfo(np.int64).min
    return np.asarray(calls.start_ns < last_ns, dtype=np.bool_)


def _model_calls(calls: Calls, stage: str) -> list[Step]:
    """Return calls of models as steps."""
    main = calls.take(calls.main)
    columns = main.start_ns.tolist(), main.end_ns.tolist(), main.count.tolist()
    return [Step(*each, stage) for each in zip(*columns, strict=True)]
