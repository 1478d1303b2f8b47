"""Which phase prevailed when: a short timeline of a trace, for views that draw it under the power."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from torchwatt.attribution.owned_intervals import OwnedIntervals, cut_by_owner, find_gap_slots
from torchwatt.attribution.power_integral import BoolArray
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.report import PhaseInterval
from torchwatt.core.terms import PHASES
from torchwatt.core.trace import Trace

MAX_INTERVALS = 150
MAX_GROUPS = 40  # the groups of modules with the most time; others are never named
_PAUSE_SHARE = 5e-4  # of the run: a shorter pause does not end an interval
_DIGITS = re.compile(r"\d+")


def module_group(fqn: str) -> str:
    """Return a module's name with `*` for each index: repeated blocks have one name."""
    return _DIGITS.sub("*", fqn)


def phase_timeline(trace: Trace, start_ns: int, end_ns: int) -> tuple[PhaseInterval, ...]:
    """Return at most `MAX_INTERVALS` disjoint intervals in time order, each with the phase that took most of its time.

    The intervals are exact if there are few; otherwise each has the phase that prevails in equal parts of the run.
    Times in which mostly nothing was traced are in no interval.

    Args:
        trace: Spans of the program's threads; of a GPU, the time at which its work was launched.
        start_ns: Start of the run.
        end_ns: End of the run.
    """
    if not len(trace) or end_ns <= start_ns:
        return ()
    pieces = cut_by_owner(trace, start_ns, end_ns)
    owned = np.flatnonzero(~find_gap_slots(trace)[pieces.slot])
    if not len(owned):
        return ()
    work = _Work(pieces, owned, start_ns)
    phase = np.array([PHASES.index(slot.phase) for slot in trace.slots], dtype=np.int64)[work.slot]
    length_ns = end_ns - start_ns
    names = [slot.fqn for slot in trace.slots]
    timeline = _timeline(work, phase, names, _phase_edges(work, phase, length_ns))
    if len(timeline) > MAX_INTERVALS:
        timeline = _timeline(work, phase, names, np.linspace(0.0, float(length_ns), MAX_INTERVALS + 1))
    return tuple(replace(part, start_ns=part.start_ns + start_ns, end_ns=part.end_ns + start_ns) for part in timeline)


def _timeline(work: _Work, phase: IntArray, names: Sequence[str], edges: FloatArray) -> list[PhaseInterval]:
    """Return intervals between edges, neighbours of one phase merged; times in ns since the start of the run."""
    busy_ns = np.stack([work.between(phase == index, edges) for index in range(len(PHASES))])
    rest_ns = np.diff(edges) - busy_ns.sum(axis=0)
    leading = np.argmax(np.vstack((busy_ns, rest_ns)), axis=0)
    firsts = np.flatnonzero(np.diff(leading, prepend=-1))
    lasts = np.append(firsts[1:], len(leading))
    busy_parts = [(int(a), int(b)) for a, b in zip(firsts, lasts, strict=True) if leading[a] < len(PHASES)]
    bounds = [(float(edges[a]), float(edges[b])) for a, b in busy_parts]
    groups = _leading_groups(work, names, bounds) if busy_parts else []
    return [
        PhaseInterval(
            round(lo),
            round(hi),
            PHASES[leading[a]],
            min(float(busy_ns[leading[a], a:b].sum() / (hi - lo)), 1.0),
            group,
        )
        for (a, b), (lo, hi), group in zip(busy_parts, bounds, groups, strict=True)
    ]


class _Work:
    """Pieces of a trace that belong to a slot, in time order; times in ns since the start of the run."""

    def __init__(self, pieces: OwnedIntervals, owned: IntArray, start_ns: int) -> None:
        order = owned[np.argsort(pieces.start_ns[owned], kind="stable")]
        self.lo_ns = (pieces.start_ns[order] - start_ns).astype(np.float64)
        self.hi_ns = (pieces.end_ns[order] - start_ns).astype(np.float64)
        self.slot = pieces.slot[order]
        self._weight = pieces.weight[order]

    def between(self, selected: BoolArray, edges: FloatArray) -> FloatArray:
        """Return the weighted time of selected pieces between neighbouring edges, in ns."""
        weight = self._weight[selected]
        begun = _weighted_time_since(self.lo_ns[selected], weight, edges)
        ended = _weighted_time_since(self.hi_ns[selected], weight, edges)
        return np.maximum(np.diff(begun - ended), 0.0)


def _weighted_time_since(at_ns: FloatArray, weight: FloatArray, edges: FloatArray) -> FloatArray:
    """Return for each edge the sum of `weight * (edge - at)` over the instants before it."""
    order = np.argsort(at_ns, kind="stable")
    before = np.searchsorted(at_ns[order], edges)
    weights = np.concatenate(([0.0], np.cumsum(weight[order])))
    moments = np.concatenate(([0.0], np.cumsum(weight[order] * at_ns[order])))
    return np.asarray(weights[before] * edges - moments[before], dtype=np.float64)


def _phase_edges(work: _Work, phase: IntArray, length_ns: int) -> FloatArray:
    """Return the instants at which the phase changes; equally spaced ones if there are more than `MAX_INTERVALS`."""
    reach_ns = np.maximum.accumulate(work.hi_ns)
    changed = np.ones(len(phase), dtype=np.bool_)
    changed[1:] = (np.diff(phase) != 0) | (work.lo_ns[1:] - reach_ns[:-1] > _PAUSE_SHARE * length_ns)
    if np.count_nonzero(changed) > MAX_INTERVALS:
        return np.linspace(0.0, float(length_ns), MAX_INTERVALS + 1)
    firsts = np.flatnonzero(changed)
    ends_ns = np.maximum.reduceat(work.hi_ns, firsts)
    return np.unique(np.concatenate((work.lo_ns[firsts], ends_ns)))


def _leading_groups(work: _Work, names: Sequence[str], bounds: Sequence[tuple[float, float]]) -> list[str]:
    """Return for each interval the group of modules with the most time in it; "" if none of the largest ran."""
    group_names = [module_group(name) for name in names]
    distinct = list(dict.fromkeys(group_names))
    group = np.array([distinct.index(name) for name in group_names], dtype=np.int64)[work.slot]
    total_ns = np.bincount(group, work.hi_ns - work.lo_ns, len(distinct))
    largest = [int(index) for index in np.argsort(-total_ns)[:MAX_GROUPS]]
    edges = np.array(bounds, dtype=np.float64).reshape(-1)
    times_ns = np.stack([work.between(group == index, edges)[::2] for index in largest])
    leading = np.argmax(times_ns, axis=0)
    return [distinct[largest[index]] if times_ns[index, at] > 0 else "" for at, index in enumerate(leading.tolist())]
