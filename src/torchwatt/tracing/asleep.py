"""Steps of which only the end was noted: filled from steps whose bounds were noted. Pure."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.fold import Kinds, Records
from torchwatt.tracing.overhead import net_clock
from torchwatt.tracing.ranges import top_level
from torchwatt.tracing.rows import STEP_KEY
from torchwatt.tracing.template import Call, Template, relative_sd

MOST_STEPS = 512  # to choose from, evenly spread
NEAR = 16  # templates that take turns
DISTURBED = 4.0  # times the median length
ENOUGH = 8  # steps of each sort before they are compared
MOST_MARK_NS = 40_000.0  # per span: what is dearer is no cost of ours


class StepBook:
    """Steps of one thread whose bounds were noted, as templates whose owners are slots.

    Args:
        spans: The thread's spans (slot, start_ns, end_ns, calls), in any order.
        steps: Where such steps began and ended: start_ns, end_ns, start_ns, ...
        apart: Slots of what no other step has, our own work and compilations, which are taken out.
        after_ns: How long torch is busy with a step after its end was noted.
        usual_ns: How long steps are of which only the end is noted; None where that is not known. What the others
            are longer is what noting their bounds costs: it is taken out, too.
    """

    def __init__(
        self,
        spans: IntArray,
        steps: Sequence[int],
        apart: Sequence[int],
        usual_ns: float | None = None,
        after_ns: int = 0,
    ) -> None:
        self._times: list[int] = []
        self._templates: list[Template] = []
        bounds = np.array(steps, dtype=np.int64).reshape(-1, 2) + after_ns
        bounds = bounds[:: max(len(bounds) // MOST_STEPS, 1)]
        spans = spans[np.lexsort((-spans[:, 2], spans[:, 1]))]
        found: list[tuple[Call, IntArray]] = []
        for start, end in bounds[np.argsort(bounds[:, 0])].tolist():
            first, last = np.searchsorted(spans[:, 1], (start, end))
            inside = spans[first:last].copy()
            inside[:, 2] = np.minimum(inside[:, 2], end)
            own = np.isin(inside[:, 0], apart)
            ours = inside[own][top_level(inside[own, 1], inside[own, 2])]
            found.append((Call(start, end, tuple((int(s), int(e)) for _, s, e, _ in ours)), inside[~own]))
        found = _undisturbed(found)
        cost_ns = _mark_ns(found, usual_ns)
        for call, inside in found:
            template = _net_template(call, inside, cost_ns)
            if template is not None:
                self._times.append(call.start_ns)
                self._templates.append(template)

    def nearest(self, records: Records, kinds: Kinds) -> Iterator[tuple[int, Template]]:
        """Yield the steps among the records, each with the template that fills it: the near ones take turns."""
        n = len(self._templates)
        if not n:
            return
        for turn, i in enumerate(steps_among(records, kinds).tolist()):
            near = bisect.bisect(self._times, int(records.start[i]))
            first = min(max(near - NEAR // 2, 0), max(n - NEAR, 0))
            yield i, self._templates[first + turn % min(NEAR, n)]

    def carry_rel_sd(self) -> dict[int, float]:
        """Return the relative SD of each slot's share between traced steps."""
        windows = []
        for template in self._templates:
            window: dict[int, float] = defaultdict(float)
            for slot, share in template.shares().items():
                window[slot] += share
            windows.append(window)
        return relative_sd([windows])


Found = Sequence[tuple[Call, IntArray]]


def _undisturbed(found: Found) -> list[tuple[Call, IntArray]]:
    """Leave out steps that lasted many times as long as others: another program ran meanwhile."""
    usual_ns = float(np.median([call.net_ns for call, _ in found])) if found else 0.0
    return [each for each in found if each[0].net_ns <= DISTURBED * usual_ns]


def _mark_ns(found: Found, usual_ns: float | None) -> float:
    """Return what noting one outermost span of a step costs."""
    if usual_ns is None or len(found) < ENOUGH:
        return 0.0
    excess_ns = float(np.median([call.net_ns for call, _ in found])) - usual_ns
    spans = float(np.median([len(top_level(inside[:, 1], inside[:, 2])) for _, inside in found]))
    return min(max(excess_ns / max(spans, 1.0), 0.0), MOST_MARK_NS)


def usual_ns(records: Records, asleep: IntArray) -> float | None:
    """Return the median length of the steps among some records, without what lies in them; None where few are."""
    if len(asleep) < ENOUGH:
        return None
    steps = records.take(asleep)
    others = records.take(np.setdiff1d(np.arange(len(records)), asleep))
    top = top_level(others.start, others.end)
    start, end = others.start[top], others.end[top]
    total = np.concatenate(([0], np.cumsum(end - start)))
    inside = total[np.searchsorted(start, steps.end)] - total[np.searchsorted(start, steps.start)]
    return float(np.median(np.maximum(steps.end - steps.start - inside, 0) / steps.count))


def _net_template(call: Call, spans: IntArray, cost_ns: float) -> Template | None:
    top = spans[top_level(spans[:, 1], spans[:, 2])]
    first, last = call.to_net(top[:, 1]), call.to_net(top[:, 2])
    clock = net_clock((0, call.net_ns), first, last, cost_ns)
    if not len(spans) or clock.total_ns <= 0:
        return None
    begins: FloatArray = clock.at(call.to_net(spans[:, 1])) / clock.total_ns
    ends: FloatArray = clock.at(call.to_net(spans[:, 2])) / clock.total_ns
    return Template(begins, ends, spans[:, 0], spans[:, 3])


def steps_among(records: Records, kinds: Kinds) -> IntArray:
    """Return the indices of the records that stand for whole steps."""
    own = [i for i, kind in enumerate(kinds.of) if kind[0] == "row" and kind[1] == STEP_KEY]
    return np.flatnonzero(np.isin(records.kind, own))
