"""From recorded windows to what a device did all the time: unseen steps are filled from the nearest window. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from torchwatt.core.activity import Activity
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Slot

MAX_FILLED = 500_000  # records; beyond, one copy of a window stands for several steps

Interval = tuple[int, int]


def spread(
    windows: Sequence[Activity], steps: Sequence[Interval], rename: Callable[[str], str], least: int = 1
) -> Activity:
    """Put a device's windows together and fill the steps in which it was not watched.

    Args:
        windows: Of one device, each with one `covered` interval: whole steps, the device idle before and after.
        steps: All steps of the loop, sorted, apart.
        rename: From the names that the windows carry to those of the report.
        least: One copy of a window stands for at least so many steps: as many as were recorded in it.
    """
    windows = sorted(windows, key=lambda window: window.covered[0])
    seen = [window.covered[0] for window in windows]
    unseen = [step for step in steps if not any(step[0] < end and start < step[1] for start, end in seen)]
    nearest = _nearest(seen, unseen)
    sizes = np.array([len(window) for window in windows], dtype=np.int64)
    each = max(-(-int(sizes[nearest].sum()) // MAX_FILLED), least) if unseen else 1
    parts = [(window, _table(window), False) for window in windows]
    for first in range(0, len(unseen), each):
        group = unseen[first : first + each]
        window = windows[nearest[first]]
        parts.append((window, _laid(window, _joined(group)), True))
    return _together(windows, parts, rename, [*seen, *unseen], steps, each)


def _nearest(seen: Sequence[Interval], unseen: Sequence[Interval]) -> IntArray:
    middle = np.array([start + end for start, end in seen], dtype=np.int64)
    wanted = np.array([start + end for start, end in unseen], dtype=np.int64)
    right = np.clip(np.searchsorted(middle, wanted), 0, len(middle) - 1)
    left = np.maximum(right - 1, 0)
    nearest: IntArray = np.where(np.abs(middle[left] - wanted) <= np.abs(middle[right] - wanted), left, right)
    return nearest


def _joined(group: Sequence[Interval]) -> Interval:
    return group[0][0], group[-1][1]


def _table(window: Activity) -> IntArray:
    return np.column_stack((window.start_ns, window.end_ns))


def _laid(window: Activity, step: Interval) -> IntArray:
    """Stretch a window over a step: order, overlap and shares stay."""
    start, end = window.covered[0]
    scale = (step[1] - step[0]) / max(end - start, 1)
    laid: IntArray = np.floor((_table(window) - start) * scale + 0.5).astype(np.int64) + step[0]
    return np.clip(laid, step[0], step[1])


def _together(
    windows: Sequence[Activity],
    parts: Sequence[tuple[Activity, IntArray, bool]],
    rename: Callable[[str], str],
    covered: Sequence[Interval],
    steps: Sequence[Interval],
    each: int,
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
        covered=tuple(sorted(covered)),
        steps=tuple(steps),
        notes=tuple(_notes(windows, len(covered) - len(windows), each)),
    )


def _notes(windows: Sequence[Activity], unseen: int, each: int) -> list[str]:
    notes = list(dict.fromkeys(note for window in windows for note in window.notes))
    notes.append(
        f"{len(windows)} windows of whole steps were recorded, {unseen} other steps are filled from the nearest"
    )
    if each > 1 and unseen:
        notes.append(f"one copy of a window stands for {each} steps")
    return notes
