"""From recorded windows to what a device did all the time: unseen steps are filled from the nearest window. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Put a device's windows together and fill the steps in which it was not watched.

    Args:
        windows: Of one device, each with one `covered` interval: whole steps, the device idle before and after.
        steps: All steps of the loop on the device, sorted, apart.
        rename: From the names that the windows carry to those of the report.
        least: One copy of a window stands for at least so many steps: as many as were recorded in it.
    """
    windows = sorted(windows, key=lambda window: window.covered[0])
    seen = [window.covered[0] for window in windows]
    unseen = [step for step in steps if not any(step.start_ns < end and start < step.end_ns for start, end in seen)]
    nearest = _nearest(seen, unseen)
    counts = [_steps_in(interval, steps) for interval in seen]
    sizes = np.array([len(window) for window in windows], dtype=np.int64)
    each = max(-(-int(sizes[nearest].sum()) // MAX_FILLED), least) if unseen else 1
    parts = [(window, _table(window), False) for window in windows]
    for first in range(0, len(unseen), each):
        group = _joined(unseen[first : first + each])
        window = windows[nearest[first]]
        parts.append((window, _laid(window, group, group.steps / counts[nearest[first]]), True))
    covered = [*seen, *((step.start_ns, step.end_ns) for step in unseen)]
    together = _together(windows, parts, rename)
    return replace(
        together,
        covered=_closed(sorted(covered)),
        steps=tuple((step.start_ns, step.end_ns) for step in steps),
        notes=tuple(_notes(windows, len(unseen), each)),
    )


def _closed(covered: Sequence[Interval]) -> tuple[Interval, ...]:
    """Close small holes, such as between a window and the step after it: nothing was queued in them."""
    closed: list[Interval] = []
    for start, end in covered:
        if closed and start - closed[-1][1] < JOINED_NS:
            closed[-1] = closed[-1][0], max(end, closed[-1][1])
        else:
            closed.append((start, end))
    return tuple(closed)


def _steps_in(window: Interval, steps: Sequence[Busy]) -> int:
    """Return how many steps were recorded in a window: those whose middle lies in it."""
    start, end = window
    return max(sum(step.steps for step in steps if start <= (step.start_ns + step.end_ns) // 2 < end), 1)


def _nearest(seen: Sequence[Interval], unseen: Sequence[Busy]) -> IntArray:
    middle = np.array([start + end for start, end in seen], dtype=np.int64)
    wanted = np.array([step.start_ns + step.end_ns for step in unseen], dtype=np.int64)
    right = np.clip(np.searchsorted(middle, wanted), 0, len(middle) - 1)
    left = np.maximum(right - 1, 0)
    nearest: IntArray = np.where(np.abs(middle[left] - wanted) <= np.abs(middle[right] - wanted), left, right)
    return nearest


def _joined(group: Sequence[Busy]) -> Busy:
    steps = sum(step.steps for step in group)
    bound = sum(step.bound for step in group) * 2 > len(group)
    return Busy(group[0].start_ns, group[-1].end_ns, steps, bound)


def _table(window: Activity) -> IntArray:
    return np.column_stack((window.start_ns, window.end_ns))


def _laid(window: Activity, group: Busy, times: float) -> IntArray:
    """Lay a window over steps: order, overlap and shares stay.

    What the device does takes as long there as in the window, and only its pauses, in which it waits for the host, are
    longer or shorter. They are left out where it had work in its queue, and where the steps are too short for them.

    Args:
        window: Its work lies in `covered`, whose length counts the recorder's own time as well.
        group: The steps.
        times: How many times the window's steps they are.
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
    """Return instants, and how long until then any record ran; the last is all of it."""
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
        known = [words.setdefault(word, len(words)) for word in window.signatures]
        word_maps[id(window)] = np.array(known, dtype=np.int64)
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


def _notes(windows: Sequence[Activity], unseen: int, each: int) -> list[str]:
    notes = list(dict.fromkeys(note for window in windows for note in window.notes))
    notes.append(
        f"{len(windows)} windows of whole steps were recorded, {unseen} other steps are filled from the nearest"
    )
    if each > 1 and unseen:
        notes.append(f"one copy of a window stands for {each} steps")
    return notes
