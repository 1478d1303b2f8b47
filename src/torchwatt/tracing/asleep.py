"""Steps of which only the end was noted: filled from whole traced steps. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.fold import Kinds, Records
from torchwatt.tracing.rows import STEP_KEY
from torchwatt.tracing.template import Call, Catalogue, Template, relative_sd, template_of

MOST_STEPS = 128  # traced steps to choose from, evenly spread
NO_SLOT = -1


class StepBook:
    """Whole traced steps of one thread as templates, whose owners are slots.

    Args:
        spans: The thread's spans (slot, start_ns, end_ns, calls), in any order.
        steps: Where traced steps began and ended: start_ns, end_ns, start_ns, ...
        apart: A slot whose spans no other step has: they are taken out of the time of a template's step.
    """

    def __init__(self, spans: IntArray, steps: Sequence[int], apart: int = NO_SLOT) -> None:
        self._catalogue: Catalogue[Template] = Catalogue()
        self._templates: list[Template] = []
        bounds = np.array(steps, dtype=np.int64).reshape(-1, 2)
        bounds = bounds[:: max(len(bounds) // MOST_STEPS, 1)]
        spans = spans[np.lexsort((-spans[:, 2], spans[:, 1]))]
        for start, end in bounds.tolist():
            first, last = np.searchsorted(spans[:, 1], (start, end))
            inside = spans[first:last]
            inside = inside[inside[:, 2] <= end]
            out = inside[:, 0] == apart
            call = Call(start, end, tuple((int(s), int(e)) for s, e in inside[out][:, [1, 2]]))
            template = template_of(call, inside[~out][:, [1, 2, 0, 3]])
            if template is not None:
                self._templates.append(template)
                self._catalogue.add((), start, template)

    def nearest(self, records: Records, kinds: Kinds) -> Iterator[tuple[int, Template]]:
        """Yield the steps among the records, each with the template that fills it."""
        for i in steps_among(records, kinds).tolist():
            template = self._catalogue.nearest((), int(records.start[i]))[0]
            if template is not None:
                yield i, template

    def carry_rel_sd(self) -> dict[int, float]:
        """Return the relative SD of each slot's share between traced steps."""
        windows = []
        for template in self._templates:
            window: dict[int, float] = defaultdict(float)
            for slot, share in template.shares().items():
                window[slot] += share
            windows.append(window)
        return relative_sd([windows])


def steps_among(records: Records, kinds: Kinds) -> IntArray:
    """Return the indices of the records that stand for whole steps."""
    own = [i for i, kind in enumerate(kinds.of) if kind[0] == "row" and kind[1] == STEP_KEY]
    return np.flatnonzero(np.isin(records.kind, own))
