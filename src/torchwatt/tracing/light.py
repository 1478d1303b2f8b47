"""Forward spans of steps that were not traced: each outermost call is filled from the nearest traced one like it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.fold import ANY_GRAPH, Kinds, Records
from torchwatt.tracing.ranges import top_level
from torchwatt.tracing.rows import COMPILE_KEY, END, FORWARD_TASK, KEY, SEQ0, SEQ1, START, TASK
from torchwatt.tracing.template import Call, Catalogue, Template, relative_sd, template_of

MOST_COMPARED = 64  # traced calls of one kind, evenly spread, for the spread between them


class ForwardBook:
    """The traced outermost calls of one thread, by module and size of the graph that they made."""

    def __init__(self, table: IntArray) -> None:
        self._table = table
        traced = np.flatnonzero((table[:, TASK] == FORWARD_TASK) & (table[:, KEY] > 0))
        rows = traced[top_level(table[traced, START], table[traced, END])]
        self._catalogue: Catalogue[int] = Catalogue()
        self._kinds: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row in rows.tolist():
            key, size = int(table[row, KEY]), int(table[row, SEQ1] - table[row, SEQ0])
            self._kinds[key, size].append(row)
            self._catalogue.add(((key, size), (key, ANY_GRAPH)), int(table[row, START]), row)
        self._templates: dict[int, Template | None] = {}

    def template(self, row: int) -> Template | None:
        """Return what a traced call consisted of; None if it called nothing."""
        if row not in self._templates:
            self._templates[row] = self._made(row)
        return self._templates[row]

    def _made(self, row: int) -> Template | None:
        start, end = int(self._table[row, START]), int(self._table[row, END])
        first = int(np.searchsorted(self._table[:row, END], start))  # rows are in the order of their ends
        rows = self._table[first:row]
        compiled = rows[(rows[:, KEY] == COMPILE_KEY) & (rows[:, START] >= start)]
        rows = rows[rows[:, KEY] != COMPILE_KEY]
        rows = rows[(rows[:, START] >= start) & (rows[:, TASK] == FORWARD_TASK)]
        rows = rows[np.lexsort((-rows[:, END], rows[:, START]))]
        call = Call(start, end, tuple((int(s), int(e)) for s, e in compiled[:, [START, END]]))
        return template_of(call, [(int(r[START]), int(r[END]), int(r[KEY]), 1) for r in rows])

    def nearest(self, records: Records, kinds: Kinds) -> Iterator[tuple[int, Template]]:
        """Yield the outermost calls among the records, each with the template that fills it."""
        for i, (kind, start) in enumerate(zip(records.kind.tolist(), records.start.tolist(), strict=True)):
            what = kinds.of[kind]
            if what[0] != "row" or not isinstance(what[1], int) or what[1] <= 0:
                continue
            row = self._catalogue.nearest((what[1:3], (what[1], ANY_GRAPH)), start, strict=True)[0]
            template = None if row is None else self.template(row)
            if template is not None:
                yield i, template

    def carry_rel_sd(self, slot_of: Callable[[int], int], used: set[int]) -> dict[int, float]:
        """Return the relative SD of each slot's share between traced calls, of the modules that were filled."""
        groups = []
        for (key, _), rows in self._kinds.items():
            if key in used:
                chosen = rows[:: max(len(rows) // MOST_COMPARED, 1)]
                groups.append([self._shares(row, key, slot_of) for row in chosen])
        return relative_sd(groups)

    def _shares(self, row: int, key: int, slot_of: Callable[[int], int]) -> dict[int, float]:
        template = self.template(row)
        shares: dict[int, float] = defaultdict(float)
        shares[slot_of(key)] = 1.0
        for owner, share in (template.shares() if template is not None else {}).items():
            shares[slot_of(owner)] += share
            shares[slot_of(key)] -= share
        return shares
