"""From logs and windows to a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import DATA as DATA_NAME
from torchwatt.core.terms import OPTIMIZER as OPTIMIZER_NAME
from torchwatt.core.terms import UNATTRIBUTED, Phase, Slot
from torchwatt.tracing.fill import Call, Template, fill, make_template
from torchwatt.tracing.log import BACKWARD, DATA, END, KEY, NOTE, OPTIMIZER, SCOPE, SEQ_HI, SEQ_LO, START, TASK
from torchwatt.tracing.owners import NOBODY, extend, node_owners
from torchwatt.tracing.window import Window


@dataclass(slots=True)
class Spans:
    """Spans being collected, with the slots they refer to."""

    slots: dict[Slot, int] = field(default_factory=dict)
    parts: list[tuple[IntArray, IntArray, IntArray, IntArray, bool, int]] = field(default_factory=list)

    def slot(self, fqn: str, phase: Phase) -> int:
        """Return a slot's number."""
        return self.slots.setdefault(Slot(fqn, phase), len(self.slots))

    def add(
        self, slot: IntArray, start: IntArray, end: IntArray, thread: IntArray, *, filled: bool, calls: int
    ) -> None:
        """Add spans of equal kind."""
        if len(slot):
            self.parts.append((slot, start, end, thread, filled, calls))


@dataclass(slots=True)
class Names:
    """How rows are called: modules by key, scopes by number."""

    modules: dict[int, str]
    scopes: list[str]


class ThreadRows:
    """One thread's rows, turned into spans."""

    def __init__(self, rows: IntArray, thread: int, names: Names, spans: Spans) -> None:
        self.rows = rows
        self.thread = thread
        self.names = names
        self.spans = spans
        self.templates: dict[Hashable, list[Template]] = defaultdict(list)
        self.empty = 0

    def build(self, windows: list[Window]) -> None:
        """Add everything this thread did."""
        self._modules()
        self._named_code()
        self._light_calls()
        self._backward(windows)

    def _add(self, slot: IntArray, rows: IntArray, *, calls: int = 1) -> None:
        threads = np.full(len(rows), self.thread, dtype=np.int64)
        self.spans.add(slot, rows[:, START], rows[:, END], threads, filled=False, calls=calls)

    def _slots(self, rows: IntArray) -> IntArray:
        """Return the slot of module and scope rows in their own phase: recomputation is part of backward."""
        found = np.empty(len(rows), dtype=np.int64)
        code = rows[:, KEY] * 2 + (rows[:, TASK] >= 0)
        for value in np.unique(code):
            key, backward = divmod(int(value), 2)
            found[code == value] = self.spans.slot(self.names.modules[key], "backward" if backward else "forward")
        return found

    def _modules(self) -> None:
        rows = self.rows[self.rows[:, KEY] >= 0]
        self._add(self._slots(rows), rows)

    def _named_code(self) -> None:
        rows = self.rows
        for kind, fqn, phase in ((OPTIMIZER, OPTIMIZER_NAME, "optimizer"), (DATA, DATA_NAME, "data")):
            mine = rows[rows[:, KEY] == kind]
            slot = self.spans.slot(fqn, phase) if len(mine) else 0  # type: ignore[arg-type]
            self._add(np.full(len(mine), slot, dtype=np.int64), mine)
        scopes = rows[rows[:, KEY] == SCOPE]
        for number in np.unique(scopes[:, NOTE]).tolist():
            mine = scopes[scopes[:, NOTE] == number]
            for backward in (False, True):
                part = mine[(mine[:, TASK] >= 0) == backward]
                if len(part):
                    slot = self.spans.slot(self.names.scopes[number], "backward" if backward else "other")
                    self._add(np.full(len(part), slot, dtype=np.int64), part)

    # --- calls that were not looked into -----------------------------------------------------------------------

    def _light_calls(self) -> None:
        """Fill the outermost calls that were only timed from the nearest one of the same module that was traced."""
        rows = self.rows[(self.rows[:, KEY] >= 0)]
        light = rows[rows[:, NOTE] == 1]
        if len(light) == 0:
            return
        full = rows[rows[:, NOTE] == 0]
        wanted = set(np.unique(light[:, KEY]).tolist())
        templates: dict[Hashable, list[Template]] = defaultdict(list)
        order = np.argsort(full[:, START], kind="stable")
        full = full[order]
        for i in np.flatnonzero(np.isin(full[:, KEY], list(wanted))).tolist():
            _, start, end, *_ = full[i].tolist()
            last = int(np.searchsorted(full[:, START], end))
            inside = full[i + 1 : last]
            inside = inside[inside[:, END] <= end]
            template = make_template(start, end, self._slots(inside), inside[:, START], inside[:, END])
            templates[int(full[i, KEY])].append(template)
        calls = [Call(int(r[KEY]), int(r[START]), int(r[END]), self.thread) for r in light]
        self._fill(calls, templates)

    def _fill(self, calls: list[Call], templates: dict[Hashable, list[Template]]) -> None:
        filled, empty = fill(calls, templates)
        self.empty += empty
        self.spans.add(filled.slot, filled.start_ns, filled.end_ns, filled.thread, filled=True, calls=1)

    # --- backward ----------------------------------------------------------------------------------------------

    def _backward(self, windows: list[Window]) -> None:
        passes = self.rows[(self.rows[:, KEY] == BACKWARD) & (self.rows[:, TASK] < 0)]
        if len(passes) == 0:
            return
        # The pass itself holds what no node claims: the engine's start, callbacks, nodes of unknown origin.
        rest = self.spans.slot(UNATTRIBUTED, "backward")
        self._add(np.full(len(passes), rest, dtype=np.int64), passes)
        by_number = {window.number: window for window in windows}
        keys = self._structures(passes)
        calls = []
        for key, row in zip(keys, passes, strict=True):
            start, end, number = int(row[START]), int(row[END]), int(row[NOTE])
            window = by_number.get(number)
            if window is None:
                calls.append(Call(key, start, end, self.thread))
                continue
            slot, begin, finish = self._nodes(window, start, end)
            threads = np.full(len(slot), self.thread, dtype=np.int64)
            self._add_once_per_slot(slot, begin, finish, threads)
            self.templates[key].append(make_template(start, end, slot, begin, finish))
        self._fill_backward(calls)

    def _fill_backward(self, calls: list[Call]) -> None:
        filled, empty = fill(calls, self.templates)
        self.empty += empty
        order = np.lexsort((filled.start_ns, filled.slot))
        part = (filled.slot[order], filled.start_ns[order], filled.end_ns[order], filled.thread[order])
        starts = np.array(sorted(c.start_ns for c in calls), dtype=np.int64)
        first = _first_of(part[0], np.searchsorted(starts, part[1], side="right"))
        for flag in (True, False):
            mine = first == flag
            self.spans.add(*(column[mine] for column in part), filled=True, calls=int(flag))

    def _add_once_per_slot(self, slot: IntArray, start: IntArray, end: IntArray, thread: IntArray) -> None:
        """A layer's several nodes of one pass are one call of its backward."""
        order = np.argsort(slot, kind="stable")
        first = _first_of(slot[order], np.zeros(len(slot), dtype=np.int64))
        for flag in (True, False):
            mine = order[first == flag]
            self.spans.add(slot[mine], start[mine], end[mine], thread[mine], filled=False, calls=int(flag))

    def _structures(self, passes: IntArray) -> list[Hashable]:
        """Say which modules ran forward on this thread between a pass and the one before: passes alike share it."""
        rows = self.rows
        light_or_outer = (rows[:, KEY] >= 0) & (rows[:, TASK] < 0)
        outer = rows[light_or_outer & _outermost(rows, light_or_outer)]
        outer = outer[np.argsort(outer[:, END], kind="stable")]
        ends = np.searchsorted(outer[:, END], passes[:, START], side="right")
        begins = np.concatenate(([0], ends[:-1]))
        return [tuple(outer[a:b, KEY].tolist()) for a, b in zip(begins, ends, strict=True)]

    def _nodes(self, window: Window, start_ns: int, end_ns: int) -> tuple[IntArray, IntArray, IntArray]:
        """Return slot, start and end of a window's nodes, engine time included."""
        known = window.sequence[window.sequence >= 0]
        if len(known) == 0:
            none = np.empty(0, dtype=np.int64)
            return none, none, none
        rows = self.rows
        near = (rows[:, SEQ_HI] > known.min()) & (rows[:, SEQ_LO] <= known.max()) & (rows[:, SEQ_HI] > rows[:, SEQ_LO])
        near &= (rows[:, KEY] >= 0) | (rows[:, KEY] == SCOPE)
        candidates = rows[near]
        owner = node_owners(window.sequence, candidates[:, SEQ_LO], candidates[:, SEQ_HI])
        slot_of = np.array(
            [self._backward_slot(int(r[KEY]), int(r[NOTE])) for r in candidates]
            + [self.spans.slot(UNATTRIBUTED, "backward")],
            dtype=np.int64,
        )
        begin = np.clip(window.start_ns, start_ns, end_ns)
        finish = extend(begin, np.clip(window.end_ns, begin, end_ns), end_ns)
        return slot_of[np.where(owner == NOBODY, len(candidates), owner)], begin, finish

    def _backward_slot(self, key: int, note: int) -> int:
        return self.spans.slot(self.names.scopes[note] if key == SCOPE else self.names.modules[key], "backward")


def _first_of(slot: IntArray, group: IntArray) -> np.ndarray:
    """Mark the first of each run of equal (slot, group); sorted by slot, then by group."""
    if len(slot) == 0:
        return np.empty(0, dtype=np.bool_)
    return np.concatenate(([True], (np.diff(slot) != 0) | (np.diff(group) != 0)))


def _outermost(rows: IntArray, wanted: np.ndarray) -> np.ndarray:
    """Mark wanted rows that no other wanted row encloses."""
    index = np.flatnonzero(wanted)
    order = index[np.lexsort((-rows[index, END], rows[index, START]))]
    ends = rows[order, END]
    reach = np.concatenate(([np.iinfo(np.int64).min], np.maximum.accumulate(ends)[:-1])) if len(order) else ends
    marks = np.zeros(len(rows), dtype=np.bool_)
    marks[order[rows[order, START] >= reach]] = True
    return marks
