"""Carry the inside of traced calls over to calls of the same structure that were not looked into."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray

# Spread of a layer's share between steps where only one window was seen: assumed, not measured.
ASSUMED_REL_SD = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """The inside of one traced call: slots, and where they lie as parts of the call's duration."""

    start_ns: int
    slot: IntArray
    begin: FloatArray
    end: FloatArray

    def share(self, slots: int) -> FloatArray:
        """Return each slot's own part of the call; nested slots count for themselves only once each."""
        return np.asarray(np.bincount(self.slot, self.end - self.begin, slots), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Call:
    """A call without an inside: `key` says which templates have its structure."""

    key: Hashable
    start_ns: int
    end_ns: int
    thread: int


@dataclass(frozen=True, slots=True, eq=False)
class Filled:
    """Spans put into calls."""

    slot: IntArray
    start_ns: IntArray
    end_ns: IntArray
    thread: IntArray


def make_template(
    call_start_ns: int, call_end_ns: int, slot: IntArray, start_ns: IntArray, end_ns: IntArray
) -> Template:
    """Turn spans inside a call into parts of it."""
    length = max(call_end_ns - call_start_ns, 1)
    begin = np.clip((start_ns - call_start_ns) / length, 0.0, 1.0)
    return Template(call_start_ns, slot, begin, np.clip((end_ns - call_start_ns) / length, begin, 1.0))


def fill(calls: Sequence[Call], templates: dict[Hashable, list[Template]]) -> tuple[Filled, int]:
    """Stretch, for each call, the nearest template of its structure over the call.

    Returns:
        The spans, and how many calls had no template and stay empty.
    """
    parts: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    empty = 0
    by_key: dict[Hashable, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    for key, group in by_key.items():
        found = sorted(templates.get(key, ()), key=lambda t: t.start_ns)
        if not found:
            empty += len(group)
            continue
        near = _nearest(np.array([t.start_ns for t in found]), np.array([c.start_ns for c in group]))
        for number, template in enumerate(found):
            mine = [group[i] for i in np.flatnonzero(near == number)]
            if mine:
                parts.append(_stretch(template, mine))
    if not parts:
        none = np.empty(0, dtype=np.int64)
        return Filled(none, none, none, none), empty
    return Filled(*(np.concatenate(column) for column in zip(*parts, strict=True))), empty


def _nearest(known: IntArray, wanted: IntArray) -> IntArray:
    right = np.searchsorted(known, wanted).clip(1, max(len(known) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(known) - 1)
    return np.where(wanted - known[left] <= known[right] - wanted, left, right)


def _stretch(template: Template, calls: list[Call]) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    start = np.array([c.start_ns for c in calls], dtype=np.int64)[:, None]
    length = np.array([c.end_ns - c.start_ns for c in calls], dtype=np.float64)[:, None]
    begin = start + np.rint(template.begin * length).astype(np.int64)
    end = start + np.rint(template.end * length).astype(np.int64)
    slot = np.broadcast_to(template.slot, begin.shape)
    thread = np.broadcast_to(np.array([c.thread for c in calls], dtype=np.int64)[:, None], begin.shape)
    return slot.ravel(), begin.ravel(), end.ravel(), thread.ravel()


def carry_rel_sd(templates: dict[Hashable, list[Template]], slots: int) -> dict[int, float]:
    """Return, per slot, the relative standard error of its mean share over the traced calls.

    With n traced calls of a structure it is sd / sqrt(n) / mean; with one there is nothing to compare with and
    ASSUMED_REL_SD is taken. The largest over the structures counts.
    """
    found: dict[int, float] = {}
    for group in templates.values():
        shares = np.array([t.share(slots) for t in group])
        mean = shares.mean(axis=0)
        seen = np.flatnonzero(mean > 0)
        if len(group) > 1:
            rel = shares.std(axis=0, ddof=1)[seen] / np.sqrt(len(group)) / mean[seen]
        else:
            rel = np.full(len(seen), ASSUMED_REL_SD)
        for slot, value in zip(seen.tolist(), rel.tolist(), strict=True):
            found[slot] = max(found.get(slot, 0.0), float(value))
    return found
