"""Collect the columns of a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Phase, Slot


class Columns:
    """Spans of all kinds, added in blocks; `index` numbers slots.

    `calls` below zero: the number of calls of the slot is unknown.
    """

    def __init__(self) -> None:
        self.slots: dict[Slot, int] = {}
        self._blocks: list[tuple[IntArray, IntArray, IntArray, IntArray, IntArray, IntArray]] = []

    def index(self, fqn: str, phase: Phase) -> int:
        """Return the number of a slot."""
        return self.slots.setdefault(Slot(fqn, phase), len(self.slots))

    def add(self, slot: Any, start: IntArray, end: IntArray, *, thread: int, filled: bool, calls: Any) -> None:
        """Add spans; `slot` and `calls` are arrays or one value for all."""
        n = len(start)
        columns = (slot, start, end, thread, int(filled), calls)
        slot_, start_, end_, thread_, filled_, calls_ = (
            np.broadcast_to(np.asarray(column, dtype=np.int64), n) for column in columns
        )
        self._blocks.append((slot_, start_, end_, thread_, filled_, calls_))

    def of_thread(self, thread: int) -> IntArray:
        """Return the spans of a thread added so far: slot, start_ns, end_ns, calls (below zero: unknown)."""
        parts = [np.column_stack((b[0], b[1], b[2], b[5])) for b in self._blocks if len(b[3]) and b[3][0] == thread]
        return np.concatenate(parts) if parts else np.empty((0, 4), dtype=np.int64)

    def untold_calls(self) -> set[int]:
        """Return the slots whose number of calls is unknown."""
        return {slot for block in self._blocks for slot in block[0][block[5] < 0].tolist()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns that `Trace` takes."""
        names = ("slot", "start_ns", "end_ns", "thread", "filled", "calls")
        if not self._blocks:
            empty: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype=np.int64) for name in names}
            return empty | {"filled": np.zeros(0, dtype=np.bool_)}
        joined = [np.concatenate(block) for block in zip(*self._blocks, strict=True)]
        result: dict[str, NDArray[Any]] = dict(zip(names, joined, strict=True))
        return result | {"filled": result["filled"].astype(np.bool_), "calls": np.maximum(result["calls"], 0)}
