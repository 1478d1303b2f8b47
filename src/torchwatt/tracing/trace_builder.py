"""Build a trace from logs: names, slots, spans, steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from torchwatt.core.energy_curve import interpolate
from torchwatt.core.intervals import busy_ns, top_level
from torchwatt.core.meter import Event, IntArray
from torchwatt.core.terms import UNATTRIBUTED, is_bare_stage
from torchwatt.core.trace import Activity, Trace
from torchwatt.core.units import s_from_ns
from torchwatt.tracing.aggregated_spans import (
    AggregatedSpans,
    SpanKinds,
    lies_within_step,
)
from torchwatt.tracing.backward_templates import BackwardTemplates
from torchwatt.tracing.log_rows import (
    AROUND_KEY,
    END,
    FAILED_SIZE,
    KEY,
    OPTIMIZER_KEY,
    PROFILER_KEY,
    SEQ0,
    SEQ1,
    START,
    STEP_KEY,
    TASK,
    is_repeat,
    stages_at,
)
from torchwatt.tracing.loop_steps import (
    LoopEvidence,
    LoopStep,
    OptimizerEnd,
    OutermostCalls,
    find_models,
    steps_of,
)
from torchwatt.tracing.module_registry import module_infos
from torchwatt.tracing.shape_samples import samples_by_name, slot_works
from torchwatt.tracing.span_assembly import SpanAssembly
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.trace_spans import TraceInputs, is_forward_kind

MOST_IN_SPANS = 0.1  # part of the time between two readings: then they tell what a thread uses between spans


def build_trace(view: TraceInputs, events: Sequence[Event]) -> Trace:
    """Build the trace of a view."""
    view.registry.refresh()
    return _TraceBuilder(view).trace(events)


class _TraceBuilder(SpanAssembly):
    def trace(self, events: Sequence[Event]) -> Trace:
        book = BackwardTemplates(self.looks, self.paths)
        for number, log in enumerate(self.view.logs):
            self._real(log, number)
            self._light(log, number, book)
            if self.calls[log]:
                book.write(self.columns, self._backward_slot, log, self.calls[log], number)
            self._asleep(log, number)
        self.untold |= book.uncertain
        self.unseen |= set(self.tree.parent) | self.outermost if book.untold else book.unseen
        carried = book.carry_rel_sd(self._backward_slot)
        arrays: dict[str, Any] = self.columns.arrays()
        steps, calls = self._steps()
        activities, lost = self._activities(steps, calls=calls)
        steps = self._staged(self._done(steps, calls=calls))
        works = samples_by_name(((log.shapes, self._stages_of(log)) for log in self.view.logs), self.names.of, (
            self.view.start_ns, self.view.end_ns,
        ))  # fmt: skip
        busy = [self._busy(log, number, arrays) for number, log in enumerate(self.view.logs)]
        slots = tuple(self.columns.slots)
        return Trace(
            slots=slots,
            **arrays,
            steps=tuple((step.start_ns, step.end_ns) for step in steps),
            step_counts=tuple(s.count for s in steps) if any(s.count > 1 for s in steps) else (),
            step_stages=tuple(step.stage for step in steps),
            modules=module_infos(self.names, self.view.registry.facts),
            carry_rel_sd=self._in_any_stage(self.carried | carried),
            events=(*events, *self._notes(book), *lost),
            activities=activities,
            cost_s=s_from_ns(self.view.cost_ns),
            untold_calls=frozenset(slot for slot in self._untold_slots() if slot < len(slots)),  # those with spans
            work=tuple(slot_works(works, slots, arrays, self._stage_begins())),
            traced_steps=self._traced_steps(steps),
            thread_busy=tuple(in_spans for in_spans, _ in busy),
            thread_between=tuple(between for _, between in busy),
            windows=sum(c.nodes is not None for calls in self.calls.values() for c in calls),
        )

    def _stages_of(self, log: ThreadLog) -> Callable[[IntArray], list[str]]:
        """Return the function from times to the names of a thread's stages."""
        changes, names = self.looks[log].stages, self.view.stages
        return lambda t_ns: [names[number] for number in stages_at(changes, t_ns).tolist()]

    def _stage_begins(self) -> dict[str, IntArray]:
        """Return when each stage of the first thread began, by its name."""
        changes = self.looks[self.view.logs[0]].stages
        return {name: changes[changes[:, 1] == number, 0] for number, name in self.view.stages.items()}

    def _traced_steps(self, steps: Sequence[LoopStep]) -> int:
        """Return in how many steps something was traced; calls of an evaluation may be traced that are no step."""
        traced_ns = [end for snapshot in self.looks.values() for end in snapshot.traced[1::2]]
        at = np.searchsorted([step.end_ns for step in steps], traced_ns)
        traced = np.bincount(at, minlength=len(steps)).tolist()
        return sum(min(count, step.count) for count, step in zip(traced, steps, strict=False))

    def _in_any_stage(self, carried: Mapping[int, float]) -> dict[int, float]:
        """Return the standard deviations of slots, with those of a slot in other stages where it has none there."""
        return {i: carried.get(i, carried[of]) for i, of in self.columns.same_in_any_stage(carried).items()}

    def _staged(self, steps: Sequence[LoopStep]) -> list[LoopStep]:
        """Return steps with the stage that the program named, where they ended in one."""
        named = zip(steps, self._stage_names(steps), strict=True)
        return [replace(step, stage=name) if name else step for step, name in named]

    def _stage_names(self, steps: Sequence[LoopStep]) -> list[str]:
        """Return the stage of each step that the program named, where it ended in one."""
        changes = self.looks[self.view.logs[0]].stages
        at_end = stages_at(changes, np.array([step.end_ns - 1 for step in steps], dtype=np.int64)).tolist()
        return [self.view.stages[step.named or number] for step, number in zip(steps, at_end, strict=True)]

    def _busy(self, log: ThreadLog, number: int, arrays: Mapping[str, IntArray]) -> tuple[float, float]:
        """Return the share of its spans' time that a thread was on a CPU, 0 to 1, and of the time between them.

        The first is 1 where unknown, the second 0.
        """
        bare = [i for i, slot in enumerate(self.columns.slots) if is_bare_stage(slot)]
        cpu_ns, mine = log.cpu.until_now_ns(), (arrays["thread"] == number) & ~np.isin(arrays["slot"], bare)
        start, end = arrays["start_ns"][mine], arrays["end_ns"][mine]
        spans_ns = busy_ns(start, end)
        if cpu_ns is None or spans_ns <= 0:
            return 1.0, 0.0
        between = busy_between(start, end, self.looks[log].cpu)
        gaps_ns = int(end.max() - start.min()) - spans_ns
        return min(max(cpu_ns - between * gaps_ns, 0.0) / spans_ns, 1.0), between

    def _steps(self) -> tuple[list[LoopStep], bool]:
        """Return the steps, and whether they are calls of the model, where nothing else marks steps."""
        view, log = self.view, self.view.logs[0]
        rows, records, kinds = self._kept_rows(log), self.records[log], self.looks[log].kinds
        of_backward, of_step = kinds.where("backward"), kinds.where("row", STEP_KEY)
        backward = records.take(np.flatnonzero(np.isin(records.kind, of_backward)))
        asleep = records.take(np.flatnonzero(np.isin(records.kind, of_step)))
        traced = np.array([(c.start_ns, c.end_ns) for c in self.calls[log]], dtype=np.int64).reshape(-1, 2)
        backward_ns = np.concatenate((traced, np.column_stack((backward.start, backward.end))))
        counts = np.concatenate((np.ones(len(traced), dtype=np.int64), backward.count))
        again = [is_repeat(call.cache["keys"]) for call in self.calls[log]]
        again += [is_repeat(kinds.of[kind][1:]) for kind in backward.kind.tolist()]
        calls = self._outermost(log, rows, records, kinds)
        optimizers, begins = self._optimizers(log), np.zeros(0, dtype=np.int64)
        if not optimizers and log in self.by_hand:
            end, count, begins = self.by_hand[log].T
            backward_ns = np.concatenate((backward_ns, np.column_stack((end - 1, end))))
            counts, again = np.concatenate((counts, count)), again + [False] * len(count)
            calls = calls.with_training(begins, end - 1, count)
        order = np.argsort(backward_ns[:, 0], kind="stable")
        no_starts = (PROFILER_KEY, AROUND_KEY, *view.stage_rows)
        excluded = [i for key in no_starts for i in kinds.where("row", key)]
        excluded += of_step if len(begins) else ()
        ours = records.take(np.flatnonzero(~np.isin(records.kind, excluded)))
        own = rows[~np.isin(rows[:, KEY], no_starts), START]
        evidence = LoopEvidence(
            view.start_ns, view.end_ns,
            starts_ns=np.sort(np.concatenate((own, ours.start, traced[:, 0], begins)).astype(np.int64)),
            calls=calls,
            backward_ns=backward_ns[order], backward_count=counts[order],
            backward_again=np.array(again, dtype=np.bool_)[order],
            optimizers=optimizers,
            unseen_ns=np.column_stack((asleep.start, asleep.end)),
            marks=[mark for mark in view.steps if mark[0] <= view.end_ns], resumed=view.resumed,
        )  # fmt: skip
        return steps_of(evidence)

    def _optimizers(self, log: ThreadLog) -> list[list[OptimizerEnd]]:
        """Return the step ends of a thread's optimizers, on all threads; where it has none, those of each thread."""
        ends_inside = {
            other_log: [each for each in snapshot.optimizers if self.view.start_ns < each[1] <= self.view.end_ns]
            for other_log, snapshot in self.looks.items()
        }
        if not ends_inside[log]:
            return [ends for ends in ends_inside.values() if ends]
        keys = {key for key, *_ in ends_inside[log]}
        ours = (each for ends in ends_inside.values() for each in ends if each[0] in keys)
        return [sorted(ours, key=lambda each: each[1])]

    def _outermost(self, log: ThreadLog, rows: IntArray, records: AggregatedSpans, kinds: SpanKinds) -> OutermostCalls:
        """Return a thread's outermost module calls that were recorded or made no graph."""
        traced = rows[(rows[:, KEY] > 0) & (rows[:, TASK] < 0)]
        traced = traced[top_level(traced[:, START], traced[:, END])]
        traced = traced[traced[:, SEQ1] - traced[:, SEQ0] != FAILED_SIZE]
        outermost = [i for i, kind in enumerate(kinds.of) if is_forward_kind(kind) and kind[2] != FAILED_SIZE]
        number = np.flatnonzero(np.isin(records.kind, outermost))
        light = records.take(number)
        of = [kinds.of[kind] for kind in light.kind.tolist()]
        passed = np.array(self.passed.get(log, ()), dtype=np.int64).reshape(-1, 5)
        key = np.concatenate(
            (traced[:, KEY], np.array([description[1] for description in of], dtype=np.int64), passed[:, 3])
        )
        grown = np.concatenate((
            traced[:, SEQ1] > traced[:, SEQ0], np.array([description[2] != 0 for description in of], dtype=np.bool_),
            np.zeros(len(passed), dtype=np.bool_),
        ))  # fmt: skip
        start = np.concatenate((traced[:, START], _began(records)[number], passed[:, 0]))
        end = np.concatenate((traced[:, END], light.end, passed[:, 1]))
        count = np.concatenate((np.ones(len(traced), dtype=np.int64), light.count, passed[:, 2]))
        within_round = np.concatenate((
            np.zeros(len(traced), dtype=np.bool_),
            np.array([lies_within_step(description) for description in of], dtype=np.bool_),
            np.zeros(len(passed), dtype=np.bool_),
        ))  # fmt: skip
        rounds = np.concatenate((np.ones(len(traced), np.int64), _steps_beside(records, kinds)[number], passed[:, 4]))
        named = np.concatenate((
            stages_at(self.looks[log].stages, traced[:, START]),
            np.array(kinds.stage, dtype=np.int64)[light.kind] if len(light) else np.zeros(0, dtype=np.int64),
            stages_at(self.looks[log].stages, passed[:, 0]),
        ))  # fmt: skip
        order = np.argsort(start, kind="stable")
        registry, functions = self.view.registry, self.view.functions
        sizes = {each: registry.params_of(each, functions) for each in set(key.tolist())}
        main = np.isin(key, list(find_models(sizes, self.names.main, trained=bool(grown.any()))))
        return OutermostCalls(
            start[order], end[order], count[order], grown[order], main[order], rounds[order], within_round[order],
            named[order],
        )  # fmt: skip

    def _activities(self, steps: Sequence[LoopStep], *, calls: bool) -> tuple[tuple[Activity, ...], tuple[Event, ...]]:
        view = self.view
        if view.devices is None:
            return (), ()

        def name_of(key: int) -> str:
            return self.names.of(key) if key > 0 else self.scope_names.get(key, UNATTRIBUTED)

        host_steps = _bounds(steps), self._stage_names(steps)
        return view.devices.activities(*host_steps, name_of, calls=calls, at_end=view.is_last, now_ns=view.done_ns)

    def _done(self, steps: Sequence[LoopStep], *, calls: bool) -> list[LoopStep]:
        """Return the steps as the device did them; the host's steps without a device or with several."""
        if self.view.devices is None or not steps:
            return list(steps)
        done = self.view.devices.done(_bounds(steps), self.view.done_ns, calls=calls)
        # A step of zero length on the device was merged with another.
        end_numbers = np.cumsum([step.count for step in steps])
        which = np.minimum(np.searchsorted(end_numbers, np.cumsum([n for *_, n in done])), len(steps) - 1)
        of = [steps[i] for i in which.tolist()]
        return [LoopStep(*each, step.stage, step.named) for each, step in zip(done, of, strict=True)]

    def _notes(self, book: BackwardTemplates) -> list[Event]:
        end = self.view.end_ns
        total = sum(self.records_of_backward(log) + len(self.calls[log]) for log in self.view.logs)
        notes = []
        if book.mismatched:
            text = f"{book.mismatched} of {total} backward calls are filled from a window of another structure"
            notes.append(Event(end, "info", "TEMPLATE_MISMATCH", "run", text))
        if book.unfilled:
            text = f"{book.unfilled} of {total} backward calls have no window: their layers are not known"
            notes.append(Event(end, "info", "BACKWARD_UNTRACED", "run", text))
        if self.filled_calls:
            text = f"{self.filled_calls} outermost calls were not traced inside: their layers are filled in from others"
            notes.append(Event(end, "info", "CALLS_FILLED", "run", text))
        if self.unlike_calls:
            text = f"{self.unlike_calls} outermost calls are of modules that were never traced inside"
            notes.append(Event(end, "info", "CALLS_UNLIKE", "run", text))
        if self.filled_steps:
            text = f"of {self.filled_steps} steps only the end was noted: their layers are filled in from others"
            notes.append(Event(end, "info", "STEPS_FILLED", "run", text))
        if self.unfilled_steps:
            text = f"{self.unfilled_steps} steps are like none whose parts were noted: their joules are (unattributed)"
            notes.append(Event(end, "info", "STEPS_UNLIKE", "run", text))
        if self.untold:
            names = sorted(self.names.of(key) for key in self.untold)
            which = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            where = f"{self.untold_calls} calls" if self.untold_calls else f"{self.untold_steps} steps"
            text = (
                f"whether {which} ran is not known for {where}: there their joules are in the module around them, and "
                "their calls are left empty"
            )
            notes.append(Event(end, "warning", "PATHS_UNKNOWN", "run", text))
        return notes

    def records_of_backward(self, log: ThreadLog) -> int:
        """Return the number of backward calls that a thread's records stand for."""
        records = self.records[log]
        own = [i for i, kind in enumerate(self.looks[log].kinds.of) if kind[0] == "backward"]
        return int(records.count[np.isin(records.kind, own)].sum())


def busy_between(start_ns: IntArray, end_ns: IntArray, cpu: IntArray) -> float:
    """Return the share of the time between spans that their thread was on a CPU; 0 where unknown.

    Args:
        start_ns: Starts of the thread's spans.
        end_ns: Their ends.
        cpu: Times, sorted, and the thread's CPU time at each; shape (n, 2).
    """
    top = top_level(start_ns, end_ns)
    starts, ends = start_ns[top], np.maximum.accumulate(end_ns[top])
    bounds = np.column_stack((starts, ends)).ravel()
    ended = np.cumsum(ends - starts, dtype=np.int64)
    covered = np.asarray(np.column_stack((ended - (ends - starts), ended)), dtype=np.int64).ravel()
    inside = cpu[(cpu[:, 0] >= starts[:1].min(initial=0)) & (cpu[:, 0] <= ends[-1:].max(initial=0))]
    wall_ns, used_ns = np.diff(inside[:, 0]), np.diff(inside[:, 1])
    in_spans_ns = np.diff(interpolate(inside[:, 0], bounds, covered))
    gaps = (in_spans_ns < MOST_IN_SPANS * wall_ns) & (wall_ns > 0)
    return float(min(used_ns[gaps].sum() / wall_ns[gaps].sum(), 1.0)) if gaps.any() else 0.0


def _bounds(steps: Sequence[LoopStep]) -> list[tuple[int, int, int]]:
    return [(step.start_ns, step.end_ns, step.count) for step in steps]


def _steps_beside(records: AggregatedSpans, kinds: SpanKinds) -> IntArray:
    """Return the number of steps around each record, from the step ends merged with it; at least 1."""
    _, group = np.unique(np.column_stack((records.run, records.unit)), axis=0, return_inverse=True)
    counts = np.zeros(len(records), dtype=np.int64)
    for which in ([*kinds.where("row", STEP_KEY), *kinds.where("row", OPTIMIZER_KEY)], kinds.where("backward")):
        ends = np.bincount(group, records.count * np.isin(records.kind, which), len(records)).astype(np.int64)
        counts = np.where(counts > 0, counts, ends[group])  # backward calls where no optimizer steps
    return np.maximum(counts, 1)


def _began(records: AggregatedSpans) -> IntArray:
    """Return the earliest possible start of each record; of merged records, the start of the first of them."""
    _, examples, group = np.unique(
        np.column_stack((records.run, records.unit)), axis=0, return_index=True, return_inverse=True
    )
    return np.where(records.count > 1, records.start[examples[group]], records.start)
