"""Fit a template to a call of another length: work keeps its time, communication absorbs the difference. Pure.

A rank that waits ten seconds for another one does not compute for ten seconds more.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.rows import COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY
from torchwatt.tracing.template import Template

FINEST = 0.01  # relative difference in length below which calls get the same template


class ElasticTemplate:
    """A template, and how much of it is communication up to each of its bounds.

    Args:
        template: Of a traced call.
        net_ns: Length of that call without the recorded spans inside it.
    """

    def __init__(self, template: Template, net_ns: int) -> None:
        self.plain = template
        self.net_ns = net_ns
        self._fitted: dict[int, Template] = {}
        mine = is_communication(template.owner)
        starts, ends = _union(template.first[mine], template.last[mine])
        bounds, place = np.unique(np.concatenate((template.first, template.last)), return_inverse=True)
        self._first, self._last = place[: len(template.first)], place[len(template.first) :]
        self._talk_before = _covered(starts, ends, bounds)
        self._work_before = bounds - self._talk_before
        self._talk = float((ends - starts).sum())

    @property
    def is_rigid(self) -> bool:
        """Whether the template is without communication, so that it stretches evenly."""
        return self._talk <= 0

    def fitted(self, net_ns: float) -> Template:
        """Return the template for a call of another net length."""
        if self.is_rigid or net_ns <= 0:
            return self.plain
        notch = round(math.log(net_ns / self.net_ns) / FINEST)
        if notch not in self._fitted:
            self._fitted[notch] = self._made(math.exp(notch * FINEST))
        return self._fitted[notch]

    def _made(self, ratio: float) -> Template:
        work = 1.0 - self._talk
        slope = min(1.0 / ratio, 1.0 / work) if work > 0 else 0.0  # of work, in fractions of the call's own length
        talk_slope = max(1.0 - slope * work, 0.0) / self._talk

        moved = slope * self._work_before + talk_slope * self._talk_before
        moved = np.minimum(np.maximum.accumulate(moved), 1.0)  # rounding must not reorder bounds
        return replace(self.plain, first=moved[self._first], last=moved[self._last])


def is_communication(owner: IntArray) -> np.ndarray:
    """Return whether each owner is communication."""
    return np.isin(owner, (COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY))


def _union(starts: FloatArray, ends: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return intervals (sorted by start) without their overlaps."""
    reached = np.maximum.accumulate(ends) if len(ends) else ends
    before = np.concatenate(([0.0], reached[:-1])) if len(ends) else ends
    start = np.minimum(np.maximum(starts, before), reached)
    return start, reached


def _covered(starts: FloatArray, ends: FloatArray, bounds: FloatArray) -> FloatArray:
    """Return how much of each `[0, bound]` lies in intervals that are sorted and disjoint."""
    if not len(starts):
        return np.zeros(len(bounds))
    total = np.concatenate(([0.0], np.cumsum(ends - starts)))
    i = np.searchsorted(starts, bounds, side="right")
    partial = np.clip(bounds - starts[np.maximum(i - 1, 0)], 0.0, (ends - starts)[np.maximum(i - 1, 0)])
    covered: FloatArray = np.where(i > 0, total[np.maximum(i - 1, 0)] + partial, 0.0)
    return covered
