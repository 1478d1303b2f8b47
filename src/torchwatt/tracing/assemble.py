"""Build a trace from logs: names, slots, spans, steps."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from torchwatt.core.activity import Activity
from torchwatt.core.meter import Event, IntArray
from torchwatt.core.terms import UNATTRIBUTED, Slot
from torchwatt.core.trace import Trace
from torchwatt.core.units import s_from_ns
from torchwatt.tracing.asleep import Modules, Ran, Slots, StepBook, steps_among
from torchwatt.tracing.backward import BackwardBook
from torchwatt.tracing.columns import Columns
from torchwatt.tracing.compose import Tree
from torchwatt.tracing.devices.watch import Watch
from torchwatt.tracing.filling import Filler
from torchwatt.tracing.fold import Kinds, Parts, Records, join_records, lies_inside, merge, shifted, split
from torchwatt.tracing.light import ForwardBook, paths_of
from torchwatt.tracing.log import Log, Look
from torchwatt.tracing.naming import RESERVED_SLOTS, Names, models_among, resolve
from torchwatt.tracing.ranges import top_level, uncross
from torchwatt.tracing.registry import Registry
from torchwatt.tracing.rounds import Mark, OptimizerEnd
from torchwatt.tracing.rows import (
    AROUND_KEY,
    BACKWARD_KEY,
    COMPILE_KEY,
    END,
    FAILED_SIZE,
    FIRST_SCOPE_KEY,
    KEY,
    LIGHT_TASK,
    OPTIMIZER_KEY,
    PROFILER_KEY,
    SEQ0,
    SEQ1,
    START,
    STEP_KEY,
    TASK,
    UNCOUNTED_COMMUNICATION_KEY,
    Backward,
)
from torchwatt.tracing.signatures import Signature, nearest_called, traced_calls
from torchwatt.tracing.steps import Calls, Evidence, Step, steps_of
from torchwatt.tracing.structure import is_again
from torchwatt.tracing.template import Template
from torchwatt.tracing.traces.busy import busy_ns

MAX_FILLED = 300_000  # spans, about 15 MB
LEAST_RECORDS = 1_024
FEW_UNITS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What a tracer reads from the hub; the first log belongs to the tracer's own thread."""

    logs: tuple[Log, ...]
    start_ns: int
    end_ns: int
    done_ns: int  # when the devices had finished the session's work
    registry: Registry
    scopes: Mapping[str, int]
    given: int | None  # key of the model that the user named
    steps: tuple[Mark, ...]  # as marked by the user
    cost_ns: int
    signatures: Sequence[Signature] = ()
    devices: Watch | None = None
    most_filled: int = MAX_FILLED  # approximate limit of spans that are filled in
    is_last: bool = False  # no other session uses the devices: wait for their work
    functions: Mapping[int, tuple[str, int]] = field(default_factory=dict)  # compiled functions: name, parameters
    resumed: Mapping[int, int] = field(default_factory=dict)  # by end of a step: its start after a pause


def assemble(view: View, events: Sequence[Event]) -> Trace:
    """Build the trace of a view."""
    view.registry.refresh()
    return _Assembly(view).trace(events)


class _Assembly:
    def __init__(self, view: View) -> None:
        self.view = view
        self.looks: dict[Log, Look] = {}
        self.records: dict[Log, Records] = {}
        self.kept: dict[Log, IntArray] = {}  # rows that are not among the records
        self.calls: dict[Log, list[Backward]] = {}
        for log in view.logs:
            snapshot = log.look()
            parts = split(
                snapshot.table, snapshot.calls, snapshot.kinds,
                since_ns=view.start_ns, margins=log.margins, within_step=snapshot.inside,
            )  # fmt: skip
            shown = [c for c in parts.calls if self._shows(c)]
            self.looks[log], self.calls[log], self.kept[log] = snapshot, shown, parts.kept
            self.records[log] = self._shown_records(snapshot, parts)
        used = [snapshot.table[:, KEY] for snapshot in self.looks.values()] + [
            self._keys(snapshot) for snapshot in self.looks.values()
        ]
        self.used = np.unique(np.concatenate(used))
        self.names: Names = resolve(view.registry.roots, view.registry.facts, self.used, view.given)
        self.names.fqn.update({key: name for key, (name, _) in view.functions.items() if key in self.used})
        self.scope_names = {key: name for name, key in view.scopes.items()}
        self.columns = Columns()
        self.passed: dict[
            Log, list[tuple[int, int, int, int, int]]
        ] = {}  # calls in steps of which only the end was recorded
        self.carried: dict[int, float] = {}
        self.filled_calls = self.filled_steps = self.unfilled_steps = 0
        self.untold: set[int] = set()  # modules of which it is not always known whether they ran
        self.unlike: set[int] = set()  # modules whose inner calls or durations are unknown
        self.unlike_calls = 0
        self.unfilled: set[int] = set()  # modules of steps that no template fills
        self.miscounted: set[int] = set()  # modules that ran more or less often than in the step's template
        self.unseen: set[int] = set()  # modules without backward work in any window
        self.untold_calls = self.untold_steps = 0
        self.by_hand: dict[Log, IntArray] = {}  # steps recorded by their ends only, without an optimizer step
        self.outermost = frozenset(self._outermost_keys())
        self.tree = self._tree()
        self.paths = {
            log: paths_of(snapshot.table, self.tree, view.signatures, self.outermost, self._siblings())
            for log, snapshot in self.looks.items()
        }

    def _tree(self) -> Tree:
        """Return the nesting of the modules that were called, and of similar ones."""
        called = {int(key) for key in self.used if key > 0}
        called.update(key for each in self.view.signatures for key in each.counts)
        archetypes = {key: self._alike(key) for key in self.names.fqn}
        like = {archetypes[key] for key in called if key in archetypes}
        called.update(key for key, name in archetypes.items() if name in like)
        return Tree(nearest_called(self.view.registry.parent, called), archetypes, self.names.fqn)

    def _siblings(self) -> Mapping[int, frozenset[int]]:
        """Map each module of a list or dict with optional members to all such members of it."""
        parent, lists = self.view.registry.parent, defaultdict[int, set[int]](set)
        for key in self.view.registry.choices:
            lists[parent.get(key, 0)].add(key)
        return {key: frozenset(keys) for keys in lists.values() for key in keys}

    def _outermost_keys(self) -> Iterator[int]:
        """Yield the outermost modules of calls in steps that were not traced, and of traced calls."""
        for snapshot in self.looks.values():
            yield from (kind[1] for kind in snapshot.kinds.of if _is_forward(kind) and isinstance(kind[1], int))
            yield from (int(snapshot.table[call.row, KEY]) for call in traced_calls(snapshot.table))

    def _alike(self, key: int) -> object:
        """Return class, size and name without its numbers: equal for modules that do the same in other blocks."""
        facts = self.view.registry.facts.get(key)
        return facts, re.sub(r"\d+", "#", self.names.of(key))

    @staticmethod
    def _keys(snapshot: Look) -> IntArray:
        return np.array([kind[1] for kind in snapshot.kinds.of if kind[0] == "row"], dtype=np.int64)

    def _shown_records(self, snapshot: Look, new: Parts) -> Records:
        """Return the records of the view: earlier ones and the log's own, merged until they fit the memory limit."""
        records, g = join_records((snapshot.records, shifted(new.records, snapshot.runs, snapshot.units))), 1
        most_records = self._most_records(snapshot, new.kept)
        while len(records) > most_records:
            g *= 2
            coarser = merge(records, g)
            if len(coarser) == len(records) and g > FEW_UNITS:
                break  # runs of a few units between traced steps cannot be merged further
            records = coarser
        is_shown = (records.start >= self.view.start_ns) & (records.end <= self.view.end_ns)
        return records.take(np.flatnonzero(is_shown))

    def _most_records(self, snapshot: Look, kept_rows: IntArray) -> int:
        """Return how many records can be filled within `most_filled` spans, as many each as a traced step has."""
        steps, spans = max(len(snapshot.traced) // 2, 1), int((snapshot.table[kept_rows, KEY] != PROFILER_KEY).sum())
        return max(self.view.most_filled * steps // max(spans, 1), LEAST_RECORDS)

    def _shows(self, call: Backward) -> bool:
        return call.start_ns >= self.view.start_ns and call.end_ns <= self.view.end_ns

    def _shown(self, table: IntArray) -> IntArray:
        return np.flatnonzero((table[:, START] >= self.view.start_ns) & (table[:, END] <= self.view.end_ns))

    def trace(self, events: Sequence[Event]) -> Trace:
        book = BackwardBook(self.looks, self.paths)
        for number, log in enumerate(self.view.logs):
            self._real(log, number)
            self._light(log, number, book)
            if self.calls[log]:
                book.write(self.columns, self._backward_slot, log, self.calls[log], number)
            self._asleep(log, number)
        carried = book.carry_rel_sd(self._backward_slot)
        arrays: dict[str, Any] = self.columns.arrays()
        steps, calls = self._steps()
        activities, lost = self._activities(steps, calls=calls)
        steps = self._done(steps, calls=calls)
        return Trace(
            slots=tuple(self.columns.slots),
            **arrays,
            steps=tuple((step.start_ns, step.end_ns) for step in steps),
            step_counts=tuple(s.count for s in steps) if any(s.count > 1 for s in steps) else (),
            step_stages=tuple(step.stage for step in steps),
            modules=self.names.modules,
            carry_rel_sd=self.carried | carried,
            events=(*events, *self._notes(book), *lost),
            activities=activities,
            cost_s=s_from_ns(self.view.cost_ns),
            untold_calls=self._untold_slots(),
            traced_steps=sum(len(snapshot.traced) // 2 for snapshot in self.looks.values()),
            thread_busy=tuple(self._busy(log, number, arrays) for number, log in enumerate(self.view.logs)),
            windows=sum(c.nodes is not None for calls in self.calls.values() for c in calls),
        )

    def _busy(self, log: Log, number: int, arrays: Mapping[str, IntArray]) -> float:
        """Return the share of its spans' time that a thread was on a CPU, 0 to 1; 1 where unknown."""
        cpu_ns, mine = log.cpu.until_now_ns(), arrays["thread"] == number
        spans_ns = busy_ns(arrays["start_ns"][mine], arrays["end_ns"][mine])
        return 1.0 if cpu_ns is None or spans_ns <= 0 else min(cpu_ns / spans_ns, 1.0)

    def _untold_slots(self) -> frozenset[int]:
        """Return the slots whose number of calls is unknown."""
        number = len(self.columns.slots)
        unfilled = self._with_inside(self.unfilled)
        untold = self._with_inside(self.untold) | self._with_inside(self.unlike) - self.outermost | unfilled
        forward = {self._forward_slot(key) for key in untold | self.miscounted}
        backward = {self._backward_slot(key) for key in untold | self._with_inside(self.unseen | self.unlike)}
        reserved = {self._slot(OPTIMIZER_KEY, backward=False)} if unfilled else set()
        return frozenset((forward | backward | reserved) & set(range(number)) | self.columns.untold_calls())

    def _with_inside(self, keys: set[int]) -> set[int]:
        return keys | {key for key in self.tree.parent if self.tree.enclosing(key, keys) != key}

    def _backward_slot(self, key: int) -> int:
        return self._slot(key, backward=True)

    def _forward_slot(self, key: int) -> int:
        return self._slot(key, backward=False)

    def _slot(self, key: int, *, backward: bool) -> int:
        if key > 0:
            return self.columns.index(self.names.of(key), "backward" if backward else "forward")
        if key <= FIRST_SCOPE_KEY:
            return self.columns.index(self.scope_names[key], "backward" if backward else "other")
        slot = RESERVED_SLOTS.get(key, Slot(UNATTRIBUTED, "backward" if backward else "forward"))
        return self.columns.index(slot.fqn, slot.phase)

    def _kept_rows(self, log: Log) -> IntArray:
        table = self.looks[log].table
        rows = table[self.kept[log]]
        return rows[self._shown(rows)]

    def _real(self, log: Log, thread: int) -> None:
        rows = self._kept_rows(log)
        if not len(rows):
            return
        kinds, kind = np.unique(rows[:, KEY] * 2 + (rows[:, TASK] >= 0), return_inverse=True)
        slots = np.array([self._slot(int(k) // 2, backward=bool(k % 2)) for k in kinds], dtype=np.int64)
        # A wrapper (DDP, torch.compile) and what it wraps share a name: count the call once.
        repeats = [wrapper for wrapper, inner in self.names.wrapped.items() if inner in self.used]
        calls = 1 - np.isin(rows[:, KEY], [*repeats, UNCOUNTED_COMMUNICATION_KEY, AROUND_KEY])
        start, end = rows[:, START].copy(), rows[:, END].copy()
        self._uncross(start, end, np.flatnonzero(rows[:, KEY] <= FIRST_SCOPE_KEY), self.calls[log])
        self.columns.add(slots[kind], start, end, thread=thread, filled=False, calls=calls)

    @staticmethod
    def _uncross(start: IntArray, end: IntArray, scopes: IntArray, calls: Sequence[Backward]) -> None:
        if not len(scopes):
            return
        all_starts = np.concatenate((start, np.array([c.start_ns for c in calls], dtype=np.int64)))
        all_ends = np.concatenate((end, np.array([c.end_ns for c in calls], dtype=np.int64)))
        starts, ends = np.sort(all_starts), np.sort(all_ends)
        began = np.searchsorted(starts, end[scopes]) - np.searchsorted(starts, start[scopes], side="right")
        ended = np.searchsorted(ends, end[scopes]) - np.searchsorted(ends, start[scopes], side="right")
        suspects = scopes[began != ended]  # beginnings and ends inside a span must be equal in number
        uncross(all_starts, all_ends, suspects)
        end[suspects] = all_ends[suspects]

    def _light(self, log: Log, thread: int, book: BackwardBook) -> None:
        """Add the records of steps that were not traced, and the spans that fill them."""
        records, kinds = self.records[log], self.looks[log].kinds
        if not len(records):
            return
        slot = np.array([self._kind_slot(kind) for kind in kinds.of], dtype=np.int64)[records.kind]
        own = np.setdiff1d(np.arange(len(records)), steps_among(records, kinds))
        bare = records.take(own)
        uncounted = [*kinds.where("row", UNCOUNTED_COMMUNICATION_KEY), *kinds.where("row", AROUND_KEY)]
        calls = bare.count * ~np.isin(bare.kind, uncounted)
        self.columns.add(slot[own], bare.start, bare.end, thread=thread, filled=False, calls=calls)
        paths = self.paths[log]
        forward = ForwardBook(self.looks[log].table, paths, log.call_ns)
        chosen = list(forward.nearest(records, kinds))
        Filler(self.columns, thread, self._forward_slot).fill_records(records, chosen)
        Filler(self.columns, thread, self._backward_slot).fill_records(records, book.nearest(records, kinds, paths))
        filled = {int(key) for i, _ in chosen if isinstance(key := kinds.of[int(records.kind[i])][1], int)}
        self.filled_calls += int(records.count[[i for i, _ in chosen]].sum()) if chosen else 0
        self.carried |= forward.carry_rel_sd(self._forward_slot, filled)
        self.untold |= forward.uncertain | book.uncertain
        self.unlike |= forward.unlike
        self.unlike_calls += forward.unfilled
        self.unseen |= set(self.tree.parent) | self.outermost if book.untold else book.unseen
        self.untold_calls += forward.untold

    def _asleep(self, log: Log, thread: int) -> None:
        """Add spans that fill steps of which only the end was recorded, from steps whose bounds were recorded."""
        records, kinds, snapshot = self.records[log], self.looks[log].kinds, self.looks[log]
        asleep = steps_among(records, kinds)
        if not len(asleep):
            return
        excluded = [self._slot(key, backward=False) for key in (PROFILER_KEY, COMPILE_KEY)]
        spans = self.columns.of_thread(thread)
        modules = Modules(self._ran(log), self.tree, self._module_slots(), snapshot.nodes)
        book = StepBook(
            spans, snapshot.skeletons, snapshot.traced, modules, excluded=excluded,
            cpu=snapshot.cpu, after_ns=round(log.margins.optimizer_after_ns),
        )  # fmt: skip
        chosen = list(book.nearest(records, kinds, self.paths[log]))
        is_part = [bool(self.paths[log].signature(kinds.of[kind][3]).part) for kind in records.kind[asleep].tolist()]
        self.by_hand[log] = self._by_hand(records, asleep[~np.array(is_part)], chosen)
        unfilled = records.take(np.setdiff1d(asleep, [i for i, _ in chosen]))
        if len(unfilled):
            slot = self.columns.index(UNATTRIBUTED, "other")
            self.columns.add(slot, unfilled.start, unfilled.end, thread=thread, filled=False, calls=0)
        Filler(self.columns, thread, int).fill_records(records, chosen)
        self.passed[log] = list(self._passed(log, dict(chosen)))
        self.filled_steps += int(records.count[asleep].sum()) - int(unfilled.count.sum())
        self.unfilled_steps += int(unfilled.count.sum())
        self.unlike |= book.unlike
        self.unfilled |= book.unfilled
        self.miscounted |= book.miscounted
        self.untold |= book.uncertain | (set(self.tree.parent) | self.outermost if book.untold else set())
        self.untold_steps += int(records.count[asleep].sum()) if book.uncertain else 0
        for slot, sd in book.carry_rel_sd().items():
            self.carried[slot] = max(sd, self.carried.get(slot, 0.0))

    def _by_hand(self, records: Records, asleep: IntArray, chosen: Sequence[tuple[int, Template]]) -> IntArray:
        """Return steps that end with a backward call: end_ns, count, start of the first forward call; shape (n, 3)."""
        begins = {i for i, slot in enumerate(self.columns.slots) if slot.phase in {"forward", "data"}}
        forward_starts = {i: template.first[np.isin(template.owner, list(begins))][:1].sum() for i, template in chosen}
        start, end, count = records.start[asleep], records.end[asleep], records.count[asleep]
        share = np.array([forward_starts.get(i, 0.0) for i in asleep.tolist()])
        return np.column_stack((end, count, start + (share * (end - start) / count).astype(np.int64)))

    def _passed(self, log: Log, chosen: Mapping[int, Template]) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield the calls without a graph that steps noted by their ends began with: start, end, count, key, steps.

        Where a record stands for several steps, `start` lies in the first of them and `end` in the last.
        """
        records, kinds = self.records[log], self.looks[log].kinds
        idle = {root.key for root in self.view.registry.roots} - self._growing(log)
        for i in steps_among(records, kinds).tolist():
            task = kinds.of[int(records.kind[i])][3]
            ran = self.paths[log].signature(task if isinstance(task, int) else LIGHT_TASK)
            if ran.opens not in idle:
                continue
            template, steps = chosen.get(i), int(records.count[i])
            start, end = int(records.start[i]), int(records.end[i])
            each_ns = (end - start) / steps
            for key in ran.counts.keys() & idle:
                slot = self._forward_slot(key)
                which = [] if template is None else np.flatnonzero(template.owner == slot)[: ran.counts[key]].tolist()
                spans = [(template.first[j], template.last[j]) for j in which] if template is not None else []
                each = ran.counts[key] * steps // max(len(spans), 1)
                for begin, finish in spans or [(0.0, 0.0)]:
                    yield start + round(begin * each_ns), end - round((1.0 - finish) * each_ns), each, key, steps

    def _growing(self, log: Log) -> set[int]:
        """Return the modules whose calls make a graph, or would with gradients enabled."""
        table, alive = self.looks[log].table, self.view.registry.module
        kinds = self.looks[log].kinds.of
        grown = {int(kind[1]) for kind in kinds if _is_forward(kind) and kind[2] not in {0, FAILED_SIZE}}  # type: ignore[call-overload]
        grown |= set(table[(table[:, KEY] > 0) & (table[:, SEQ1] > table[:, SEQ0]), KEY].tolist())
        roots = {root.key: alive(root.key) for root in self.view.registry.roots}
        return grown | {key for key, root in roots.items() if root is None or _wants_gradients(root)}

    def _ran(self, log: Log) -> Ran:
        """Return the modules that ran in the outermost calls of a thread."""
        snapshot, paths, records = self.looks[log], self.paths[log], self.records[log]
        always = self.outermost.union(key for key, *_ in snapshot.optimizers) | {BACKWARD_KEY}
        calls_found: list[tuple[int, Mapping[int, int], frozenset[int] | None]] = [
            (int(snapshot.table[call.row, START]), call.counts, None) for call in paths.calls
        ]
        for kind, start, count in zip(
            records.kind.tolist(), records.start.tolist(), records.count.tolist(), strict=True
        ):
            description = snapshot.kinds.of[kind]
            if _is_forward(description):
                ran = paths.signature(description[3])
                counts = {key: n * count for key, n in ran.counts.items()}
                counts[description[1]] = count + counts.get(description[1], 0)
                calls_found.append((start, counts, ran.over | always))
            elif description[0] == "backward":
                calls_found.append((start, {BACKWARD_KEY: count}, None))
        calls_found += [(call.start_ns, {BACKWARD_KEY: 1}, None) for call in self.calls[log]]
        # The end of an optimizer step is the end of the step, which contains it.
        calls_found += [(end - 1, {key: 1}, None) for key, end, count in snapshot.optimizers if count == 1]
        calls_found.sort(key=lambda each: each[0])
        starts, ran_counts, over = zip(*calls_found, strict=True) if calls_found else ((), (), ())
        return Ran(starts, ran_counts, over, always, _led_ns(snapshot), frozenset().union(*paths.varying.values()))

    def _module_slots(self) -> Slots:
        """Return the module of each slot added so far."""
        by_name: dict[str, int] = {}
        for key, name in self.names.fqn.items():
            by_name.setdefault(name, key)
        slots = list(self.columns.slots)
        keys = {
            i: by_name[slot.fqn]
            for i, slot in enumerate(slots)
            if slot.phase in {"forward", "backward"} and slot.fqn in by_name
        }

        backward = {i for i, slot in enumerate(slots) if slot.phase == "backward"}

        def beside(slot: int, key: int) -> int:
            index = self.columns.index(self.names.of(key), slots[slot].phase)
            if slot in backward:
                backward.add(index)
            return index

        keys |= {i: BACKWARD_KEY for i, slot in enumerate(slots) if slot == Slot(UNATTRIBUTED, "backward")}
        number = Counter(self.names.of(key) for key in self.used if key > 0)
        alone = frozenset(key for key, name in self.names.fqn.items() if number[name] == 1)
        return Slots(keys, beside, backward.__contains__, alone)

    def _kind_slot(self, kind: tuple[Any, ...]) -> int:
        if kind[0] == "backward":
            return self.columns.index(UNATTRIBUTED, "backward")
        return self._slot(kind[1], backward=kind[3] >= 0)

    def _steps(self) -> tuple[list[Step], bool]:
        """Return the steps, and whether they are calls of the model, where nothing else marks steps."""
        view, log = self.view, self.view.logs[0]
        rows, records, kinds = self._kept_rows(log), self.records[log], self.looks[log].kinds
        of_backward, of_step = kinds.where("backward"), kinds.where("row", STEP_KEY)
        backward = records.take(np.flatnonzero(np.isin(records.kind, of_backward)))
        asleep = records.take(np.flatnonzero(np.isin(records.kind, of_step)))
        traced = np.array([(c.start_ns, c.end_ns) for c in self.calls[log]], dtype=np.int64).reshape(-1, 2)
        backward_ns = np.concatenate((traced, np.column_stack((backward.start, backward.end))))
        counts = np.concatenate((np.ones(len(traced), dtype=np.int64), backward.count))
        again = [is_again(call.cache["keys"]) for call in self.calls[log]]
        again += [is_again(kinds.of[kind][1:]) for kind in backward.kind.tolist()]
        calls = self._outermost(log, rows, records, kinds)
        optimizers, begins = self._optimizers(log), np.zeros(0, dtype=np.int64)
        if not optimizers and log in self.by_hand:
            end, count, begins = self.by_hand[log].T
            backward_ns = np.concatenate((backward_ns, np.column_stack((end - 1, end))))
            counts, again = np.concatenate((counts, count)), again + [False] * len(count)
            calls = calls.with_training(begins, end - 1, count)
        order = np.argsort(backward_ns[:, 0], kind="stable")
        excluded = [*kinds.where("row", PROFILER_KEY), *kinds.where("row", AROUND_KEY)]
        excluded += of_step if len(begins) else ()
        ours = records.take(np.flatnonzero(~np.isin(records.kind, excluded)))
        own = rows[~np.isin(rows[:, KEY], (PROFILER_KEY, AROUND_KEY)), START]
        evidence = Evidence(
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

    def _optimizers(self, log: Log) -> list[list[OptimizerEnd]]:
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

    def _outermost(self, log: Log, rows: IntArray, records: Records, kinds: Kinds) -> Calls:
        """Return a thread's outermost module calls that were recorded or made no graph."""
        traced = rows[(rows[:, KEY] > 0) & (rows[:, TASK] < 0)]
        traced = traced[top_level(traced[:, START], traced[:, END])]
        traced = traced[traced[:, SEQ1] - traced[:, SEQ0] != FAILED_SIZE]
        outermost = [i for i, kind in enumerate(kinds.of) if _is_forward(kind) and kind[2] != FAILED_SIZE]
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
            np.array([lies_inside(description) for description in of], dtype=np.bool_),
            np.zeros(len(passed), dtype=np.bool_),
        ))  # fmt: skip
        rounds = np.concatenate((np.ones(len(traced), np.int64), _steps_beside(records, kinds)[number], passed[:, 4]))
        order = np.argsort(start, kind="stable")
        sizes = {each: self._params(each) for each in set(key.tolist())}
        main = np.isin(key, list(models_among(sizes, self.names.main, trained=bool(grown.any()))))
        return Calls(
            start[order], end[order], count[order], grown[order], main[order], rounds[order], within_round[order]
        )

    def _params(self, key: int) -> int:
        """Return the parameters of a module with its submodules, or of the modules that a compiled function uses."""
        if key in self.view.functions:
            return self.view.functions[key][1]
        facts = self.view.registry.facts
        for root in self.view.registry.roots:
            for path, own in root.paths:
                if own == key:
                    keys_below = {k for p, k in root.paths if p == path or not path or p.startswith(f"{path}.")}
                    return sum(facts[k].params for k in keys_below if k in facts)
        return facts[key].params if key in facts else 0

    def _activities(self, steps: Sequence[Step], *, calls: bool) -> tuple[tuple[Activity, ...], tuple[Event, ...]]:
        view = self.view
        if view.devices is None:
            return (), ()

        def name_of(key: int) -> str:
            return self.names.of(key) if key > 0 else self.scope_names.get(key, UNATTRIBUTED)

        return view.devices.activities(_bounds(steps), name_of, calls=calls, at_end=view.is_last, now_ns=view.done_ns)

    def _done(self, steps: Sequence[Step], *, calls: bool) -> list[Step]:
        """Return the steps as the device did them; the host's steps without a device or with several."""
        if self.view.devices is None or not steps:
            return list(steps)
        done = self.view.devices.done(_bounds(steps), self.view.done_ns, calls=calls)
        # A step of zero length on the device was merged with another.
        end_numbers = np.cumsum([step.count for step in steps])
        which = np.minimum(np.searchsorted(end_numbers, np.cumsum([n for *_, n in done])), len(steps) - 1)
        return [Step(*each, steps[i].stage) for each, i in zip(done, which.tolist(), strict=True)]

    def _notes(self, book: BackwardBook) -> list[Event]:
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

    def records_of_backward(self, log: Log) -> int:
        """Return the number of backward calls that a thread's records stand for."""
        records = self.records[log]
        own = [i for i, kind in enumerate(self.looks[log].kinds.of) if kind[0] == "backward"]
        return int(records.count[np.isin(records.kind, own)].sum())


def _bounds(steps: Sequence[Step]) -> list[tuple[int, int, int]]:
    return [(step.start_ns, step.end_ns, step.count) for step in steps]


def _steps_beside(records: Records, kinds: Kinds) -> IntArray:
    """Return the number of steps around each record, from the step ends merged with it; at least 1."""
    _, group = np.unique(np.column_stack((records.run, records.unit)), axis=0, return_inverse=True)
    counts = np.zeros(len(records), dtype=np.int64)
    for which in ([*kinds.where("row", STEP_KEY), *kinds.where("row", OPTIMIZER_KEY)], kinds.where("backward")):
        ends = np.bincount(group, records.count * np.isin(records.kind, which), len(records)).astype(np.int64)
        counts = np.where(counts > 0, counts, ends[group])  # backward calls where no optimizer steps
    return np.maximum(counts, 1)


def _began(records: Records) -> IntArray:
    """Return the earliest possible start of each record; of merged records, the start of the first of them."""
    _, examples, group = np.unique(
        np.column_stack((records.run, records.unit)), axis=0, return_index=True, return_inverse=True
    )
    return np.where(records.count > 1, records.start[examples[group]], records.start)


def _wants_gradients(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _led_ns(snapshot: Look) -> IntArray:
    """Return the start of the forward pass before each backward call, and of the call; shape (n, 2)."""
    starts = []
    for call in snapshot.calls:
        rows = snapshot.table[call.since : call.first]
        begun = rows[(rows[:, KEY] > 0) & (rows[:, SEQ1] > rows[:, SEQ0]), START]
        starts.append((int(begun.min()) if len(begun) else call.start_ns, call.start_ns))
    return np.array(starts, dtype=np.int64).reshape(-1, 2)


def _is_forward(kind: tuple[Hashable, ...]) -> bool:
    """Return whether records of a kind are module calls outside a backward call."""
    return kind[0] == "row" and isinstance(kind[1], int) and kind[1] > 0 and kind[3] != 0
