"""Extend recorded windows to the whole run: steps outside windows are filled from the nearest window. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from torchwatt.core.activity import Activity
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import Slot
from torchwatt.tracing.devices.stamps import JOINED_NS, Busy

MAX_FILLED = 500_000  # records; beyond, one copy of a window stands for several steps

Interval = tuple[int, int]


def spread(
    windows: Sequence[Activity], steps: Sequence[Busy], rename: Callable[[str], str], least: int = 1
) -> Activity:
    """Merge a device's windows and fill the steps in which it was not recorded.

    Args:
        windows: Of one device, each with one `covered` interval: whole steps, the device idle before and after.
        steps: All steps of the loop on the device, sorted, disjoint.
        rename: From the names in the windows to those of the report.
        least: Minimum number of steps per copy of a window: as many as were recorded in it.
    """
    windows = sorted(windows, key=lambda window: window.covered[0])
    recorded = [window.covered[0] for window in windows]
    unrecorded = _unseen(recorded, steps)
    nearest = _nearest(recorded, unrecorded)
    counts = _counts(recorded, steps)
    sizes = np.array([len(window) for window in windows], dtype=np.int64)
    each = max(-(-int(sizes[nearest].sum()) // MAX_FILLED), least) if unrecorded else 1
    parts = [(window, _table(window), False) for window in windows]
    for begin, end in _groups(unrecorded, recorded, each):
        group = _joined(unrecorded[begin:end])
        window = windows[nearest[begin]]
        parts.append((window, _laid(window, group, group.steps / counts[nearest[begin]]), True))
    covered = [*recorded, *((step.start_ns, step.end_ns) for step in unrecorded)]
    together = _together(windows, parts, rename)
    return replace(
        together,
        covered=_closed(sorted(covered)),
        steps=tuple((step.start_ns, step.end_ns) for step in steps),
        notes=tuple(_notes(windows, len(unrecorded), each)),
    )


def _closed(covered: Sequence[Interval]) -> tuple[Interval, ...]:
    """Close gaps shorter than `JOINED_NS`, such as between a window and the next step: nothing was queued in them."""
    closed: list[Interval] = []
    for start, end in covered:
        if closed and start - closed[-1][1] < JOINED_NS:
            closed[-1] = closed[-1][0], max(end, closed[-1][1])
        else:
            closed.append((start, end))
    return tuple(closed)


def _unseen(recorded: Sequence[Interval], steps: Sequence[Busy]) -> list[Busy]:
    """Return the steps that no window overlaps; windows are sorted and disjoint."""
    starts, ends = np.array(recorded, dtype=np.int64).reshape(-1, 2).T
    bounds = np.array([(step.start_ns, step.end_ns) for step in steps], dtype=np.int64).reshape(-1, 2)
    touched = np.searchsorted(starts, bounds[:, 1], side="left") > np.searchsorted(ends, bounds[:, 0], side="right")
    return [step for step, overlaps in zip(steps, touched.tolist(), strict=True) if not overlaps]


def _counts(recorded: Sequence[Interval], steps: Sequence[Busy]) -> list[int]:
    """Return the number of steps in each window: those whose middle lies in it, at least 1."""
    middles = np.array([(step.start_ns + step.end_ns) // 2 for step in steps], dtype=np.int64)
    total = np.concatenate(([0], np.cumsum([step.steps for step in steps])))
    bounds = np.searchsorted(middles, np.array(recorded, dtype=np.int64).reshape(-1, 2))
    counts = total[bounds[:, 1]] - total[bounds[:, 0]]
    return [max(int(n), 1) for n in counts]


def _groups(unrecorded: Sequence[Busy], recorded: Sequence[Interval], each: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of groups of at most `each` adjacent steps, with neither a gap nor a window between them."""
    starts = [start for start, _ in recorded]
    begin = 0
    for i in range(1, len(unrecorded) + 1):
        if i < len(unrecorded) and i - begin < each:
            before, after = unrecorded[i - 1], unrecorded[i]
            has_gap = after.start_ns - before.end_ns >= JOINED_NS
            if not has_gap and bisect_right(starts, before.end_ns) == bisect_right(starts, after.start_ns):
                continue
        yield begin, i
        begin = i


def _nearest(recorded: Sequence[Interval], unrecorded: Sequence[Busy]) -> IntArray:
    middle = np.array([start + end for start, end in recorded], dtype=np.int64)
    targets = np.array([step.start_ns + step.end_ns for step in unrecorded], dtype=np.int64)
    after = np.clip(np.searchsorted(middle, targets), 0, len(middle) - 1)
    before = np.maximum(after - 1, 0)
    nearest: IntArray = np.where(np.abs(middle[before] - targets) <= np.abs(middle[after] - targets), before, after)
    return nearest


def _joined(group: Sequence[Busy]) -> Busy:
    steps = sum(step.steps for step in group)
    bound = sum(step.bound for step in group) * 2 > len(group)
    return Busy(group[0].start_ns, group[-1].end_ns, steps, bound)


def _table(window: Activity) -> IntArray:
    return np.column_stack((window.start_ns, window.end_ns))


def _laid(window: Activity, group: Busy, times: float) -> IntArray:
    """Stretch a window over steps: order, overlap and shares are kept.

    Device work takes as long as in the window; only pauses, in which the device waits for the host, are stretched or
    shortened. They are left out where work was queued, and where the steps are too short for them.

    Args:
        window: Its work lies in `covered`, whose length includes the recorder's own time.
        group: The steps.
        times: Ratio of their number to the window's steps.
    """
    start, end = window.covered[0]
    table = np.clip(_table(window) - start, 0, end - start)
    edges, busy = _busy(table)
    length, pause = group.end_ns - group.start_ns, end - start - busy[-1]
    pace = length / max(busy[-1], 1)
    if not group.bound and pause > 0:
        pace = min(times, pace)
    slack = (length - pace * busy[-1]) / pause if pause > 0 else 0.0
    worked = np.interp(table, edges, busy)
    laid: IntArray = np.floor(worked * pace + (table - worked) * slack + 0.5).astype(np.int64) + group.start_ns
    return np.clip(laid, group.start_ns, group.end_ns)


def _busy(table: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the edges of records, and the time until each edge in which any record ran; the last is the total."""
    edges = np.unique(np.append(table, 0)).astype(np.float64)
    starts, ends = np.sort(table[:, 0]), np.sort(table[:, 1])
    running = np.searchsorted(starts, edges, side="right") > np.searchsorted(ends, edges, side="right")
    return edges, np.concatenate(([0.0], np.cumsum(np.diff(edges) * running[:-1])))


def _together(
    windows: Sequence[Activity],
    parts: Sequence[tuple[Activity, IntArray, bool]],
    rename: Callable[[str], str],
) -> Activity:
    slots: dict[Slot, int] = {}
    words: dict[str, int] = {}
    slot_maps, word_maps = {}, {}
    for window in windows:
        named = [replace(slot, fqn=rename(slot.fqn)) for slot in window.slots]
        slot_maps[id(window)] = np.array([slots.setdefault(slot, len(slots)) for slot in named], dtype=np.int64)
        numbers = [words.setdefault(word, len(words)) for word in window.signatures]
        word_maps[id(window)] = np.array(numbers, dtype=np.int64)
    filled = np.concatenate([np.full(len(window), is_filled) for window, _, is_filled in parts])
    times = np.concatenate([table for _, table, _ in parts])
    return Activity(
        device=windows[0].device,
        slots=tuple(slots),
        slot=np.concatenate([slot_maps[id(window)][window.slot] for window, *_ in parts]),
        start_ns=times[:, 0],
        end_ns=times[:, 1],
        stream=np.concatenate([window.stream for window, *_ in parts]),
        filled=filled.astype(np.bool_),
        signatures=tuple(words) or ("",),
        signature=np.concatenate([word_maps[id(window)][window.signature] for window, *_ in parts]),
    )


def _notes(windows: Sequence[Activity], unrecorded: int, each: int) -> list[str]:
    notes = list(dict.fromkeys(note for window in windows for note in window.notes))
    notes.append(
        f"{len(windows)} windows of whole steps were recorded, {unrecorded} other steps are filled from the nearest"
    )
    if each > 1 and unrecorded:
        notes.append(f"one copy of a window stands for {each} steps")
    return notes
