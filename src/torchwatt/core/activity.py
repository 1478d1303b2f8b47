"""Activity of one device: kernels, copies and communication on its timeline, each with the module that launched it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.errors import TraceError
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Slot


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """Records of one device as columns of equal length, in any order; times on the session's monotonic clock.

    `slot` and `signature` are indices into `slots` and `signatures`. Records with one signature (kernel name, grid and
    shapes) do the same work and draw about the same power in every layer. `filled` marks records that were not traced
    but extrapolated from a traced window. Records of different streams may overlap; durations are never summed across
    streams. `covered` holds the intervals (start_ns, end_ns) that were traced or filled: the device's activity outside
    of them is unknown, not idle. An empty `covered` means the whole run.
    """

    device: str  # the domain of its meter, such as "gpu:0"
    slots: tuple[Slot, ...]
    slot: IntArray
    start_ns: IntArray
    end_ns: IntArray
    stream: IntArray
    filled: NDArray[np.bool_]
    signatures: tuple[str, ...] = ("",)
    signature: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    covered: tuple[tuple[int, int], ...] = ()
    steps: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns) of steps on the device's timeline, where known
    notes: tuple[str, ...] = ()  # how records got their modules, and which have none: one sentence each

    def __post_init__(self) -> None:
        columns = (self.start_ns, self.end_ns, self.stream, self.filled)
        if any(len(column) != len(self.slot) for column in columns):
            raise TraceError(f"{self.device}: columns of an activity differ in length")
        if len(self.signature) not in {0, len(self.slot)}:
            raise TraceError(f"{self.device}: signatures are for all records or for none")
        if np.any(self.end_ns < self.start_ns):
            raise TraceError(f"{self.device}: a record ends before it starts")

    def __len__(self) -> int:
        return len(self.slot)
