"""Make the spans of a trace from logs: recorded ones, and those that templates fill."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import COMMUNICATION, COMPILE, DATA, OPTIMIZER, PROFILER, UNATTRIBUTED, Slot
from torchwatt.tracing.aggregated_spans import (
    AggregatedSpans,
    LogParts,
    concatenate_spans,
    merge_spans,
    shift_numbers,
    split_log,
)
from torchwatt.tracing.backward_templates import BackwardTemplates
from torchwatt.tracing.call_template import CallTemplate, traced_calls
from torchwatt.tracing.forward_templates import ForwardTemplates, paths_of
from torchwatt.tracing.log_rows import (
    AROUND_KEY,
    BACKWARD_KEY,
    END,
    FAILED_SIZE,
    FIRST_SCOPE_KEY,
    KEY,
    NO_STAGE,
    OPTIMIZER_KEY,
    OUTERMOST_TASK,
    PROFILER_KEY,
    SEQ0,
    SEQ1,
    START,
    TASK,
    UNCOUNTED_COMMUNICATION_KEY,
    UNKNOWN_KEY,
    BackwardCall,
    nearest_called,
    stages_at,
)
from torchwatt.tracing.module_registry import RESERVED_SLOTS, ModuleNames, resolve_names
from torchwatt.tracing.named_parts import scopes_in_steps, uncross_scopes
from torchwatt.tracing.step_templates import StepTemplates
from torchwatt.tracing.template_composer import CalledModules, ModuleCalls, ModuleSlots, ModuleTree, steps_among
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.trace_spans import (
    LogSnapshot,
    SpanColumns,
    SpanFiller,
    TraceInputs,
    _led_ns,
    is_forward_kind,
    take_out_own,
    wants_gradients,
)

LEAST_RECORDS = 1_024
FEW_UNITS = 1 << 20
UNCOUNTED_KEYS = (UNCOUNTED_COMMUNICATION_KEY, AROUND_KEY)  # of rows that are no calls


class SpanAssembly:
    """The spans of all threads of a trace."""

    def __init__(self, view: TraceInputs) -> None:
        self.view = view
        self.looks: dict[ThreadLog, LogSnapshot] = {}
        self.records: dict[ThreadLog, AggregatedSpans] = {}
        self.kept: dict[ThreadLog, IntArray] = {}  # rows that are not among the records
        self.calls: dict[ThreadLog, list[BackwardCall]] = {}
        for log in view.logs:
            snapshot = log.look()
            parts = split_log(
                snapshot.table, snapshot.calls, snapshot.kinds,
                since_ns=max(view.start_ns, snapshot.folded_ns), margins=log.margins, within_step=snapshot.inside,
                stages=snapshot.stages,
            )  # fmt: skip
            shown = [c for c in parts.calls if self._shows(c)]
            self.looks[log], self.calls[log], self.kept[log] = snapshot, shown, parts.kept
            self.records[log] = take_out_own(self._shown_records(snapshot, parts), snapshot.kinds)
        used = [snapshot.table[:, KEY] for snapshot in self.looks.values()] + [
            self._keys(snapshot) for snapshot in self.looks.values()
        ]
        self.used = np.unique(np.concatenate(used))
        self.names: ModuleNames = resolve_names(view.registry.roots, view.registry.facts, self.used, view.given)
        self.names.fqn.update({key: name for key, (name, _) in view.functions.items() if key in self.used})
        self.scope_names = {key: name for name, key in view.scopes.items()}
        self.columns = SpanColumns()
        self.passed: dict[
            ThreadLog, list[tuple[int, int, int, int, int]]
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
        self.by_hand: dict[ThreadLog, IntArray] = {}  # steps recorded by their ends only, without an optimizer step
        self.outermost = frozenset(self._outermost_keys())
        self.tree = self._tree()
        self.paths = {
            log: paths_of(snapshot.table, self.tree, view.signatures, self.outermost, self._siblings())
            for log, snapshot in self.looks.items()
        }

    def _tree(self) -> ModuleTree:
        """Return the nesting of the modules that were called, and of similar ones."""
        called = {int(key) for key in self.used if key > 0}
        called.update(key for each in self.view.signatures for key in each.counts)
        archetypes = {key: self._alike(key) for key in self.names.fqn}
        like = {archetypes[key] for key in called if key in archetypes}
        called.update(key for key, name in archetypes.items() if name in like)
        return ModuleTree(nearest_called(self.view.registry.parent, called), archetypes, self.names.fqn)

    def _siblings(self) -> Mapping[int, frozenset[int]]:
        """Map each module of a list or dict with optional members to all such members of it."""
        parent, lists = self.view.registry.parent, defaultdict[int, set[int]](set)
        for key in self.view.registry.choices:
            lists[parent.get(key, 0)].add(key)
        return {key: frozenset(keys) for keys in lists.values() for key in keys}

    def _outermost_keys(self) -> Iterator[int]:
        """Yield the outermost modules of calls in steps that were not traced, and of traced calls."""
        for snapshot in self.looks.values():
            yield from (kind[1] for kind in snapshot.kinds.of if is_forward_kind(kind) and isinstance(kind[1], int))
            yield from (int(snapshot.table[call.row, KEY]) for call in traced_calls(snapshot.table))

    def _alike(self, key: int) -> object:
        """Return class, size and name without its numbers: equal for modules that do the same in other blocks."""
        facts = self.view.registry.facts.get(key)
        return facts, re.sub(r"\d+", "#", self.names.of(key))

    @staticmethod
    def _keys(snapshot: LogSnapshot) -> IntArray:
        return np.array([kind[1] for kind in snapshot.kinds.of if kind[0] == "row"], dtype=np.int64)

    def _shown_records(self, snapshot: LogSnapshot, new: LogParts) -> AggregatedSpans:
        """Return the records of the view: earlier ones and the log's own, merged until they fit the memory limit."""
        records, g = concatenate_spans((snapshot.records, shift_numbers(new.records, snapshot.runs, snapshot.units))), 1
        most_records = self._most_records(snapshot, new.kept)
        while len(records) > most_records:
            g *= 2
            coarser = merge_spans(records, g)
            if len(coarser) == len(records) and g > FEW_UNITS:
                break  # runs of a few units between traced steps cannot be merged further
            records = coarser
        is_shown = (records.start >= self.view.start_ns) & (records.end <= self.view.end_ns)
        return records.take(np.flatnonzero(is_shown))

    def _most_records(self, snapshot: LogSnapshot, kept_rows: IntArray) -> int:
        """Return how many records can be filled within `most_filled` spans, as many each as a traced step has."""
        steps, spans = max(len(snapshot.traced) // 2, 1), int((snapshot.table[kept_rows, KEY] != PROFILER_KEY).sum())
        return max(self.view.most_filled * steps // max(spans, 1), LEAST_RECORDS)

    def _shows(self, call: BackwardCall) -> bool:
        return call.start_ns >= self.view.start_ns and call.end_ns <= self.view.end_ns

    def _shown(self, table: IntArray) -> IntArray:
        return np.flatnonzero((table[:, START] >= self.view.start_ns) & (table[:, END] <= self.view.end_ns))

    def _untold_slots(self) -> frozenset[int]:
        """Return the slots whose number of calls is unknown."""
        unfilled = self._with_inside(self.unfilled)
        untold = self._with_inside(self.untold) | self._with_inside(self.unlike) - self.outermost | unfilled
        forward = {self._forward_slot(key) for key in untold | self.miscounted}
        backward = {self._backward_slot(key) for key in untold | self._with_inside(self.unseen | self.unlike)}
        reserved = {self._slot(OPTIMIZER_KEY, backward=False)} if unfilled else set()
        return frozenset(self.columns.same_in_any_stage(forward | backward | reserved)) | self.columns.untold_calls()

    def _with_inside(self, keys: set[int]) -> set[int]:
        return keys | {key for key in self.tree.parent if self.tree.enclosing(key, keys) != key}

    def _backward_slot(self, key: int, stage: int = NO_STAGE) -> int:
        return self._slot(key, stage, backward=True)

    def _forward_slot(self, key: int, stage: int = NO_STAGE) -> int:
        return self._slot(key, stage, backward=False)

    def _slot(self, key: int, stage: int = NO_STAGE, *, backward: bool) -> int:
        name = self.view.stages[stage]
        if key > 0:
            return self.columns.index(self.names.of(key), "backward" if backward else "forward", name)
        if key in self.view.stage_rows:
            around, number = self.view.stage_rows[key]
            return self.columns.index(around, "other", self.view.stages[number])
        if key <= FIRST_SCOPE_KEY:
            return self.columns.index(self.scope_names[key], "backward" if backward else "other", name)
        slot = RESERVED_SLOTS.get(key, Slot(UNATTRIBUTED, "backward" if backward else "forward"))
        return self.columns.index(slot.fqn, slot.phase, name)

    def _in_stage(self, slot: int, of: int, to: int) -> int:
        """Return a slot of the stage `of` in the stage `to`; a slot of another stage unchanged."""
        own = list(self.columns.slots)[slot]
        is_moved = own.stage == self.view.stages[of]
        return self.columns.index(own.fqn, own.phase, self.view.stages[to]) if is_moved else slot

    def _kept_rows(self, log: ThreadLog) -> IntArray:
        table = self.looks[log].table
        rows = table[self.kept[log]]
        return rows[self._shown(rows)]

    def _real(self, log: ThreadLog, thread: int) -> None:
        rows = self._kept_rows(log)
        if not len(rows):
            return
        stage, number = stages_at(self.looks[log].stages, rows[:, START]), len(self.view.stages)
        codes = (rows[:, KEY] * 2 + (rows[:, TASK] >= 0)) * number + stage
        kinds, kind = np.unique(codes, return_inverse=True)
        slots = np.array(
            [self._slot(k // number // 2, k % number, backward=bool(k // number % 2)) for k in kinds.tolist()],
            dtype=np.int64,
        )
        # A wrapper (DDP, torch.compile) and what it wraps share a name: count the call once.
        repeats = [wrapper for wrapper, inner in self.names.wrapped.items() if inner in self.used]
        calls = 1 - np.isin(rows[:, KEY], [*repeats, *self.view.stage_rows, *UNCOUNTED_KEYS])
        start, end = rows[:, START].copy(), rows[:, END].copy()
        uncross_scopes(start, end, np.flatnonzero(rows[:, KEY] <= FIRST_SCOPE_KEY), self.calls[log])
        self.columns.add(slots[kind], start, end, thread=thread, filled=False, calls=calls)

    def _light(self, log: ThreadLog, thread: int, book: BackwardTemplates) -> None:
        """Add the records of steps that were not traced, and the spans that fill them."""
        records, kinds = self.records[log], self.looks[log].kinds
        if not len(records):
            return
        slots = [self._kind_slot(*each) for each in zip(kinds.of, kinds.stage, strict=True)]
        slot = np.array(slots, dtype=np.int64)[records.kind]
        own = np.setdiff1d(np.arange(len(records)), steps_among(records, kinds))
        bare = records.take(own)
        uncounted = [i for key in (*UNCOUNTED_KEYS, *self.view.stage_rows) for i in kinds.where("row", key)]
        calls = bare.count * ~np.isin(bare.kind, uncounted)
        self.columns.add(slot[own], bare.start, bare.end, thread=thread, filled=False, calls=calls)
        paths = self.paths[log]
        forward = ForwardTemplates(self.looks[log].table, paths, log.call_ns, self.looks[log].stages)
        chosen = list(forward.nearest(records, kinds))
        SpanFiller(self.columns, thread, self._forward_slot).fill_records(records, kinds, chosen)
        backward = book.nearest(records, kinds, paths)
        SpanFiller(self.columns, thread, self._backward_slot).fill_records(records, kinds, backward)
        filled = {int(key) for i, _ in chosen if isinstance(key := kinds.of[int(records.kind[i])][1], int)}
        self.filled_calls += int(records.count[[i for i, _ in chosen]].sum()) if chosen else 0
        self.carried |= forward.carry_rel_sd(self._forward_slot, filled)
        self.untold |= forward.uncertain
        self.unlike |= forward.unlike
        self.unlike_calls += forward.unfilled
        self.untold_calls += forward.untold

    def _asleep(self, log: ThreadLog, thread: int) -> None:
        """Add spans that fill steps of which only the end was recorded, from steps whose bounds were recorded."""
        records, kinds, snapshot = self.records[log], self.looks[log].kinds, self.looks[log]
        asleep = steps_among(records, kinds)
        if not len(asleep):
            return
        names = [slot.fqn for slot in self.columns.slots]
        excluded = [i for i, name in enumerate(names) if name in {PROFILER, COMPILE}]
        waits = [i for i, name in enumerate(names) if name in {DATA, COMMUNICATION}]
        spans = self.columns.of_thread(thread)
        modules = ModuleCalls(self._ran(log), self.tree, self._module_slots(), snapshot.nodes, snapshot.stages)
        book = StepTemplates(
            spans, snapshot.skeletons, snapshot.traced, modules, excluded=excluded, waits=waits,
            cpu=snapshot.cpu, after_ns=round(log.margins.optimizer_after_ns),
        )  # fmt: skip
        chosen = list(book.nearest(records, kinds, self.paths[log]))
        is_part = [bool(self.paths[log].signature(kinds.of[kind][3]).part) for kind in records.kind[asleep].tolist()]
        self.by_hand[log] = self._by_hand(records, asleep[~np.array(is_part)], chosen)
        unfilled = records.take(np.setdiff1d(asleep, [i for i, _ in chosen]))
        if len(unfilled):
            stages = [kinds.stage[kind] for kind in unfilled.kind.tolist()]
            slots = np.array([self.columns.index(UNATTRIBUTED, "other", self.view.stages[n]) for n in stages])
            self.columns.add(slots, unfilled.start, unfilled.end, thread=thread, filled=False, calls=0)
        SpanFiller(self.columns, thread, lambda slot, _: slot).fill_records(records, kinds, chosen)
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

    def _by_hand(
        self, records: AggregatedSpans, asleep: IntArray, chosen: Sequence[tuple[int, CallTemplate]]
    ) -> IntArray:
        """Return steps that end with a backward call: end_ns, count, start of the first forward call; shape (n, 3)."""
        begins = {i for i, slot in enumerate(self.columns.slots) if slot.phase in {"forward", "data"}}
        forward_starts = {i: template.first[np.isin(template.owner, list(begins))][:1].sum() for i, template in chosen}
        start, end, count = records.start[asleep], records.end[asleep], records.count[asleep]
        share = np.array([forward_starts.get(i, 0.0) for i in asleep.tolist()])
        return np.column_stack((end, count, start + (share * (end - start) / count).astype(np.int64)))

    def _passed(self, log: ThreadLog, chosen: Mapping[int, CallTemplate]) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield the calls without a graph that steps noted by their ends began with: start, end, count, key, steps.

        Where a record stands for several steps, `start` lies in the first of them and `end` in the last.
        """
        records, kinds = self.records[log], self.looks[log].kinds
        idle = {root.key for root in self.view.registry.roots} - self._growing(log)
        for i in steps_among(records, kinds).tolist():
            task = kinds.of[int(records.kind[i])][3]
            ran = self.paths[log].signature(task if isinstance(task, int) else OUTERMOST_TASK)
            if ran.opens not in idle:
                continue
            template, steps = chosen.get(i), int(records.count[i])
            start, end = int(records.start[i]), int(records.end[i])
            each_ns = (end - start) / steps
            for key in ran.counts.keys() & idle:
                slots = list(self.columns.same_in_any_stage([self._forward_slot(key)]))
                owned = np.flatnonzero(np.isin(template.owner, slots)) if template is not None else np.zeros(0, int)
                which = owned[: ran.counts[key]].tolist()
                spans = [(template.first[j], template.last[j]) for j in which] if template is not None else []
                each = ran.counts[key] * steps // max(len(spans), 1)
                for begin, finish in spans or [(0.0, 0.0)]:
                    yield start + round(begin * each_ns), end - round((1.0 - finish) * each_ns), each, key, steps

    def _growing(self, log: ThreadLog) -> set[int]:
        """Return the modules whose calls make a graph, or would with gradients enabled."""
        table, alive = self.looks[log].table, self.view.registry.module
        kinds = self.looks[log].kinds.of
        grown = {int(kind[1]) for kind in kinds if is_forward_kind(kind) and kind[2] not in {0, FAILED_SIZE}}  # type: ignore[call-overload]
        grown |= set(table[(table[:, KEY] > 0) & (table[:, SEQ1] > table[:, SEQ0]), KEY].tolist())
        roots = {root.key: alive(root.key) for root in self.view.registry.roots}
        return grown | {key for key, root in roots.items() if root is None or wants_gradients(root)}

    def _ran(self, log: ThreadLog) -> CalledModules:
        """Return the modules that ran in the outermost calls of a thread."""
        snapshot, paths, records = self.looks[log], self.paths[log], self.records[log]
        optimizers = frozenset(key for key, *_ in snapshot.optimizers)
        scopes = frozenset(key for each in self.view.signatures for key in each.over if key <= FIRST_SCOPE_KEY)
        always = self.outermost | optimizers | scopes | {BACKWARD_KEY}
        calls_found: list[tuple[int, Mapping[int, int], frozenset[int] | None]] = [
            (int(snapshot.table[call.row, START]), call.counts, None) for call in paths.calls
        ]
        for kind, start, count in zip(
            records.kind.tolist(), records.start.tolist(), records.count.tolist(), strict=True
        ):
            description = snapshot.kinds.of[kind]
            if is_forward_kind(description):
                ran = paths.signature(description[3])
                counts = {key: n * count for key, n in ran.counts.items()}
                counts[description[1]] = count + counts.get(description[1], 0)
                calls_found.append((start, counts, ran.over | always))
            elif description[0] == "backward":
                calls_found.append((start, {BACKWARD_KEY: count}, None))
        calls_found += [(call.start_ns, {BACKWARD_KEY: 1}, None) for call in self.calls[log]]
        ended_scopes = scopes_in_steps(snapshot, self.kept[log], records, scopes)
        calls_found += [(end - 1, {key: count}, None) for key, end, count in ended_scopes]
        # The end of an optimizer step is the end of the step, which contains it.
        calls_found += [(end - 1, {key: 1}, None) for key, end, count in snapshot.optimizers if count == 1]
        calls_found.sort(key=lambda each: each[0])
        starts, ran_counts, over = zip(*calls_found, strict=True) if calls_found else ((), (), ())
        varying = frozenset[int]().union(*paths.varying.values())
        return CalledModules(starts, ran_counts, over, always, _led_ns(snapshot), varying, optimizers)

    def _module_slots(self) -> ModuleSlots:
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
            index = self.columns.index(self.names.of(key), slots[slot].phase, slots[slot].stage)
            if slot in backward:
                backward.add(index)
            return index

        of_slot = {(UNATTRIBUTED, "backward"): BACKWARD_KEY, (OPTIMIZER, "optimizer"): OPTIMIZER_KEY}
        keys |= {i: of_slot[s.fqn, s.phase] for i, s in enumerate(slots) if (s.fqn, s.phase) in of_slot}
        number = Counter(self.names.of(key) for key in self.used if key > 0)
        row_keys = {(name, ""): key for name, key in self.view.scopes.items()}
        row_keys |= {(name, self.view.stages[n]): key for key, (name, n) in self.view.stage_rows.items()}
        rows = {i: row_keys.get((s.fqn, s.stage)) or row_keys.get((s.fqn, "")) for i, s in enumerate(slots)}
        keys |= {i: key for i, key in rows.items() if key and slots[i].phase == "other"}
        alone = frozenset(key for key, name in self.names.fqn.items() if number[name] == 1)
        return ModuleSlots(keys, beside, backward.__contains__, alone, self._in_stage)

    def _kind_slot(self, kind: tuple[Any, ...], stage: int) -> int:
        if kind[0] == "backward":
            return self._backward_slot(UNKNOWN_KEY, stage)
        return self._slot(kind[1], stage, backward=kind[3] >= 0)
