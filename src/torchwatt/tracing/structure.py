"""Classify backward calls by the forward pass before them: calls of one class fill each other. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import top_level
from torchwatt.tracing.rows import END, FORWARD_TASK, KEY, LIGHT_TASK, SEQ0, SEQ1, START, TASK, Backward

AGAIN = 8  # the ninth backward call through one forward pass counts as the eighth
FEW_ROWS = 8

Key = tuple[object, ...]
PARTIAL = "partial"  # structure of a backward call whose forward pass was not, or only partly, recorded
Outer = tuple[int, int, int]


def keys_of(table: IntArray, call: Backward, before: Backward | None) -> tuple[Key, ...]:
    """Return a call's structures, the finest first; stored in its cache."""
    keys: tuple[Key, ...] | None = call.cache.get("keys")
    if keys is None:
        fine, coarse = structure(table[call.since : call.first])
        if coarse is None and before is not None:
            # Another backward call through the same forward pass (two losses, retain_graph) has its own structure.
            keys = tuple((*key[:-1], min(_times(key) + 1, AGAIN)) for key in before.cache.get("keys", ()))
        else:
            keys = (() if fine is None else (("fine", fine, call.reduces, 0),)) + (
                () if coarse is None else (("coarse", coarse, call.reduces, 0),)
            )
        call.cache["keys"] = keys
    return keys


def is_again(keys: Sequence[object]) -> bool:
    """Return whether a call, by its structures, is not the first one through its forward pass."""
    return any(isinstance(key, tuple) and _times(key) for key in keys)


def is_partial(keys: Sequence[object]) -> bool:
    """Return whether the forward pass before a call was not, or only partly, recorded."""
    return any(isinstance(key, tuple) and key[0] == PARTIAL for key in keys)


def _times(key: Key) -> int:
    times = key[-1]
    return times if isinstance(times, int) else 0


def structure(rows: IntArray) -> tuple[bytes | None, tuple[Outer, ...] | None]:
    """Return the structure of the forward calls before a backward call: a digest of all, and the outermost ones.

    Each call has its key, the number of autograd sequence numbers assigned during it, and its task, which has the
    signature of the modules inside if these were not traced. Calls that made no autograd node (evaluations) do not
    count. None without such calls.
    """
    if len(rows) <= FEW_ROWS and not (rows[:, TASK] == FORWARD_TASK).any():
        outer = tuple((row[KEY], row[SEQ1] - row[SEQ0], row[TASK]) for row in rows.tolist() if _grown(row))
        return None, outer or None
    grown = rows[(rows[:, SEQ1] > rows[:, SEQ0]) & (rows[:, KEY] > 0)]
    traced, light = grown[grown[:, TASK] == FORWARD_TASK], grown[grown[:, TASK] <= LIGHT_TASK]
    top = np.concatenate((traced[top_level(traced[:, START], traced[:, END])], light))
    size, task = top[:, SEQ1] - top[:, SEQ0], np.minimum(top[:, TASK], LIGHT_TASK)
    fine = _digest(traced[:, KEY], traced[:, SEQ1] - traced[:, SEQ0]) if len(traced) else None
    return fine, tuple(zip(top[:, KEY].tolist(), size.tolist(), task.tolist(), strict=True)) or None


def _grown(row: list[int]) -> bool:
    return row[SEQ1] > row[SEQ0] and row[KEY] > 0 and row[TASK] <= LIGHT_TASK


def _digest(*columns: IntArray) -> bytes:
    digest = hashlib.blake2b(digest_size=12)
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.digest()
