"""The backward spans of a trace: traced calls joined, the others filled from templates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import UNATTRIBUTED
from torchwatt.tracing.columns import Columns
from torchwatt.tracing.join import Piece, inner_spans, join, structure
from torchwatt.tracing.log import Backward, Log
from torchwatt.tracing.template import Call, Catalogue, Template, relative_sd, stretch, stretch_many, template_of

AGAIN = "++++++++"  # the ninth backward without a new forward counts as the eighth


class BackwardBook:
    """All backward calls of some threads: structures, templates, and spans made of them."""

    def __init__(self, tables: Mapping[Log, IntArray]) -> None:
        self._tables = tables
        self._catalogue = Catalogue()
        self._templates: dict[Hashable, list[Template]] = defaultdict(list)
        self.mismatched = 0
        self.unfilled = 0
        for log in tables:
            self._study(log)

    def _study(self, log: Log) -> None:
        before: Backward | None = None
        for call in list(log.backwards):
            if "keys" not in call.cache:
                call.cache["keys"] = self._keys(log, call, before)
            template = self._template(log, call)
            if template is not None:
                self._catalogue.add(call.cache["keys"], call.start_ns, template)
                self._templates[call.cache["keys"][:1]].append(template)
            before = call

    def _keys(self, log: Log, call: Backward, before: Backward | None) -> tuple[str, ...]:
        since = before.last if before else 0
        fine, coarse = structure(self._tables[log][since : call.first])
        if coarse is None and before is not None:
            # Another backward through the same forward (two losses, retain_graph) is a kind of its own.
            return tuple(key if key.endswith(AGAIN) else key + "+" for key in before.cache["keys"])
        return ((f"fine {fine.hex()}",) if fine else ()) + ((f"coarse {coarse.hex()}",) if coarse else ())

    def _template(self, log: Log, call: Backward) -> Template | None:
        if call.nodes is None:
            return None
        if "template" not in call.cache:
            lanes = self.pieces(log, call)
            call.cache["template"] = template_of(self._on_clock(log, call), lanes[0]) if lanes else None
        template: Template | None = call.cache["template"]
        return template

    def pieces(self, log: Log, call: Backward) -> list[list[Piece]]:
        """Return the pieces of a traced call, one list a thread."""
        if "lanes" not in call.cache:
            others = [table for other, table in self._tables.items() if other is not log]
            call.cache["lanes"] = join(call, self._tables[log], others)
        lanes: list[list[Piece]] = call.cache["lanes"]
        return lanes

    def _on_clock(self, log: Log, call: Backward) -> Call:
        if "clock" not in call.cache:
            inner = inner_spans(call, self._tables[log])
            call.cache["clock"] = Call(call.start_ns, call.end_ns, inner)
        clock: Call = call.cache["clock"]
        return clock

    def write(
        self, columns: Columns, slot_of: Mapping[int, int], log: Log, calls: Sequence[Backward], thread: int
    ) -> None:
        """Add the spans of some calls of a log; `slot_of` maps an owner's key to its backward slot."""
        whole = columns.index(UNATTRIBUTED, "backward")
        start = np.array([call.start_ns for call in calls], dtype=np.int64)
        end = np.array([call.end_ns for call in calls], dtype=np.int64)
        columns.add(whole, start, end, thread=thread, filled=False, calls=1)
        alike: dict[int, tuple[Template, list[int]]] = {}
        for i, call in enumerate(calls):
            if call.nodes is not None:
                for lane, found in enumerate(self.pieces(log, call)):
                    _add_pieces(columns, slot_of, found, thread if lane == 0 else 1000 * (thread + 1) + lane)
                continue
            template, matched = self._catalogue.nearest(call.cache["keys"], call.start_ns)
            if template is None:
                self.unfilled += 1
                continue
            self.mismatched += not matched
            clock = self._on_clock(log, call)
            if clock.inner:
                first, last = stretch(template, clock)
                _add_filled(columns, slot_of, template, first[None], last[None], thread)
            else:
                alike.setdefault(id(template), (template, []))[1].append(i)
        for template, members in alike.values():
            first, last = stretch_many(template, start[members], end[members])
            _add_filled(columns, slot_of, template, first, last, thread)

    def carry_rel_sd(self, slot_of: Mapping[int, int]) -> dict[int, float]:
        """Return the relative SD of each backward slot's share between windows."""
        groups = []
        for templates in self._templates.values():
            windows = []
            for template in templates:
                window: dict[int, float] = defaultdict(float)
                for key, share in template.shares().items():
                    window[slot_of[key]] += share
                windows.append(window)
            groups.append(windows)
        return relative_sd(groups)

    def owners(self) -> set[int]:
        """Return every key that owns backward time."""
        own = {int(key) for ts in self._templates.values() for t in ts for key in np.unique(t.owner)}
        lanes = (lane for log in self._tables for c in log.backwards for lane in c.cache.get("lanes", ()))
        return own | {piece[2] for lane in lanes for piece in lane}


def _add_pieces(columns: Columns, slot_of: Mapping[int, int], found: Sequence[Piece], thread: int) -> None:
    if found:
        table = np.array(found, dtype=np.int64)
        slot = np.array([slot_of[key] for key in table[:, 2].tolist()], dtype=np.int64)
        columns.add(slot, table[:, 0], table[:, 1], thread=thread, filled=False, calls=table[:, 3])


def _add_filled(
    columns: Columns, slot_of: Mapping[int, int], template: Template, first: IntArray, last: IntArray, thread: int
) -> None:
    slot = np.array([slot_of[key] for key in template.owner.tolist()], dtype=np.int64)
    slot, calls = (np.tile(column, len(first)) for column in (slot, template.calls))
    columns.add(slot, first.ravel(), last.ravel(), thread=thread, filled=True, calls=calls)
