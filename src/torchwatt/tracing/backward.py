"""The backward spans of a trace: recorded calls joined, the others filled from templates."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import UNATTRIBUTED
from torchwatt.tracing.columns import Columns
from torchwatt.tracing.elastic import ElasticTemplate
from torchwatt.tracing.filling import Filler, fitted
from torchwatt.tracing.fold import Kinds, Records
from torchwatt.tracing.join import inner_spans, join
from torchwatt.tracing.log import Log, Look
from torchwatt.tracing.ranges import top_level
from torchwatt.tracing.rows import END, KEY, START, Backward
from torchwatt.tracing.template import Call, Template, relative_sd, stretch, template_of

NEAR = 4  # calls before and after one that was not recorded, to choose from


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A recorded call as a template for others.

    `net` leaves out what ran inside and has spans of its own (recomputed modules); `whole` has recomputed modules
    too, for calls of which nothing else is known.
    """

    net: ElasticTemplate
    whole: ElasticTemplate
    length_ns: int


class ModelIndex:
    """Recorded calls by structure and time."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, list[tuple[int, Model]]] = defaultdict(list)

    def add(self, keys: Sequence[Hashable], t_ns: int, model: Model) -> None:
        """File a call under its structures and under "any"."""
        for key in (*keys, None):
            bisect.insort(self._by_key[key], (t_ns, model), key=lambda entry: entry[0])

    def nearest(self, keys: Sequence[Hashable], t_ns: int, length_ns: float) -> tuple[Model | None, bool]:
        """Return, of the calls near in time, the one most alike in length, and whether its structure matches.

        A call that was interrupted by other programs is long, and stands for others that were.

        Args:
            keys: Structures, the best first.
            t_ns: When the call that is to be filled began.
            length_ns: How long it took.
        """
        for key in (*keys, None):
            entries = self._by_key.get(key)
            if entries:
                i = bisect.bisect(entries, t_ns, key=lambda entry: entry[0])
                near = [model for _, model in entries[max(i - NEAR, 0) : i + NEAR]]
                return min(
                    near, key=lambda model: abs(math.log(model.length_ns / max(length_ns, 1.0)))
                ), key is not None
        return None, False


class BackwardBook:
    """All backward calls of some threads: templates, and spans made of them."""

    def __init__(self, looks: Mapping[Log, Look]) -> None:
        self._tables = {log: look.table for log, look in looks.items()}
        self._by_structure = ModelIndex()
        self._models: dict[Hashable, list[Model]] = defaultdict(list)
        self._lanes: list[IntArray] = []
        self.mismatched = 0
        self.unfilled = 0
        for log, look in looks.items():
            for call in look.calls:
                self._study(log, call)

    def _study(self, log: Log, call: Backward) -> None:
        if call.nodes is None:
            return
        self._lanes += self.pieces(log, call)
        if "model" not in call.cache:
            call.cache["model"] = self._model(log, call)
        model: Model | None = call.cache["model"]
        if model is not None:
            keys = call.cache["keys"]
            self._by_structure.add(keys, call.start_ns, model)
            self._models[keys[:1]].append(model)

    def _model(self, log: Log, call: Backward) -> Model | None:
        lanes = self.pieces(log, call)
        if not lanes or not len(lanes[0]):
            return None
        clock = self._on_clock(log, call)
        net = _elastic(clock, lanes[0])
        rows = self._tables[log][call.first : call.last]
        modules, reserved = rows[rows[:, KEY] > 0], rows[rows[:, KEY] <= 0]
        if not len(modules):
            return None if net is None else Model(net, net, call.end_ns - call.start_ns)
        again = np.column_stack((modules[:, START], modules[:, END], modules[:, KEY], np.ones(len(modules), np.int64)))
        again[:, :2] = np.clip(again[:, :2], call.start_ns, call.end_ns)
        both = np.concatenate((lanes[0], again))
        both = both[np.lexsort((-both[:, 1], both[:, 0]))]
        top = reserved[top_level(reserved[:, START], reserved[:, END])]
        inner = tuple((int(s), int(e)) for s, e in np.clip(top[:, [START, END]], call.start_ns, call.end_ns))
        whole = _elastic(Call(call.start_ns, call.end_ns, inner), both)
        return None if net is None or whole is None else Model(net, whole, call.end_ns - call.start_ns)

    def pieces(self, log: Log, call: Backward) -> list[IntArray]:
        """Return the pieces of a recorded call (start_ns, end_ns, owner, calls), one table a thread."""
        if "lanes" not in call.cache:
            others = [table for other, table in self._tables.items() if other is not log]
            lanes = join(call, self._tables[log], others)
            call.cache["lanes"] = [np.array(lane, dtype=np.int64).reshape(-1, 4) for lane in lanes]
        found: list[IntArray] = call.cache["lanes"]
        return found

    def _on_clock(self, log: Log, call: Backward) -> Call:
        if "clock" not in call.cache:
            inner = inner_spans(call, self._tables[log])
            call.cache["clock"] = Call(call.start_ns, call.end_ns, inner)
        clock: Call = call.cache["clock"]
        return clock

    def write(
        self, columns: Columns, slot_of: Callable[[int], int], log: Log, calls: Sequence[Backward], thread: int
    ) -> None:
        """Add the spans of some calls of traced steps; `slot_of` maps an owner's key to its backward slot."""
        start = np.array([call.start_ns for call in calls], dtype=np.int64)
        end = np.array([call.end_ns for call in calls], dtype=np.int64)
        columns.add(columns.index(UNATTRIBUTED, "backward"), start, end, thread=thread, filled=False, calls=1)
        filler, one = Filler(columns, thread, slot_of), np.ones(1, dtype=np.int64)
        for call in calls:
            if call.nodes is not None:
                for lane, table in enumerate(self.pieces(log, call)):
                    slot = np.array([slot_of(key) for key in table[:, 2].tolist()], dtype=np.int64)
                    where = thread if lane == 0 else 1000 * (thread + 1) + lane
                    columns.add(slot, table[:, 0], table[:, 1], thread=where, filled=False, calls=table[:, 3])
            elif (model := self._nearest(call.cache["keys"], call.start_ns, call.end_ns, 1)) is not None:
                clock = self._on_clock(log, call)
                template = model.net.fitted(clock.net_ns)
                first, last = stretch(template, clock)
                filler.fill(template, first[None], last[None], one)

    def nearest(self, records: Records, kinds: Kinds) -> Iterator[tuple[int, Template]]:
        """Yield the backward calls among the records, each with the template that fills it."""
        for i, kind in enumerate(records.kind.tolist()):
            what = kinds.of[kind]
            if what[0] == "backward":
                model = self._nearest(what[1:], int(records.start[i]), int(records.end[i]), int(records.count[i]))
                if model is not None:
                    yield i, fitted(model.whole, records, i)

    def _nearest(self, keys: Sequence[Hashable], start_ns: int, end_ns: int, count: int) -> Model | None:
        model, matched = self._by_structure.nearest(keys, start_ns, (end_ns - start_ns) / count)
        self.unfilled += count * (model is None)
        self.mismatched += count * (model is not None and not matched)
        return model

    def carry_rel_sd(self, slot_of: Callable[[int], int]) -> dict[int, float]:
        """Return the relative SD of each backward slot's share between windows."""
        groups = []
        for models in self._models.values():
            windows = []
            for model in models:
                window: dict[int, float] = defaultdict(float)
                for key, share in model.whole.plain.shares().items():
                    window[slot_of(key)] += share
                windows.append(window)
            groups.append(windows)
        return relative_sd(groups)


def _elastic(call: Call, pieces: IntArray) -> ElasticTemplate | None:
    template = template_of(call, pieces)
    return None if template is None else ElasticTemplate(template, call.net_ns)
