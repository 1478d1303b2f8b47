"""A trace as columns: device records, their launches, and the operators and ranges on the host's threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.core.meter import IntArray

KERNEL, COPY, FILL = range(3)  # what a record is
MODULE, OWN, ANNOTATION = range(3)  # python's nn.Module call, a range named by us, any other annotation


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Device records; `correlation` identifies the launch, `node` is the graph's node where CUPTI provides it."""

    device: IntArray
    stream: IntArray
    start_ns: IntArray
    end_ns: IntArray
    correlation: IntArray
    name: IntArray
    signature: IntArray
    kind: IntArray
    node: IntArray
    collective: IntArray  # 1 where the arguments name a collective operation

    def __len__(self) -> int:
        return len(self.device)


@dataclass(frozen=True, slots=True, eq=False)
class Launches:
    """Calls of the CUDA or HIP runtime or driver; `kernel` is the launched kernel's name where the trace has it."""

    thread: IntArray
    start_ns: IntArray
    end_ns: IntArray
    correlation: IntArray
    name: IntArray
    kernel: IntArray

    def __len__(self) -> int:
        return len(self.thread)


@dataclass(frozen=True, slots=True, eq=False)
class Ops:
    """Operators and autograd nodes. `forward` is torch's own number of the forward thread, 0 for forward operators."""

    thread: IntArray
    start_ns: IntArray
    end_ns: IntArray
    name: IntArray
    sequence: IntArray
    forward: IntArray

    def __len__(self) -> int:
        return len(self.thread)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Named ranges on the host."""

    thread: IntArray
    start_ns: IntArray
    end_ns: IntArray
    name: IntArray
    kind: IntArray

    def __len__(self) -> int:
        return len(self.thread)


@dataclass(frozen=True, slots=True, eq=False)
class Flows:
    """Arrows from a forward operator to its backward node: both ends, joined by `key`."""

    thread: IntArray
    t_ns: IntArray
    key: IntArray
    arrives: IntArray

    def __len__(self) -> int:
        return len(self.thread)


@dataclass(frozen=True, slots=True, eq=False)
class Kineto:
    """One trace file. Times are unix nanoseconds where `clock` is known; `name` columns point into `names`.

    `notes` have one sentence for each kind of omission, with its reason.
    """

    source: str
    names: tuple[str, ...]
    signatures: tuple[str, ...]
    threads: tuple[int, ...]  # the operating system's thread numbers, by thread code
    records: Records
    launches: Launches
    ops: Ops
    ranges: Ranges
    flows: Flows
    events: int
    clock: str  # "base": written in the trace; "unix": microseconds, by their size; "unknown"
    rank: int | None = None
    device_names: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()


def group_starts(sorted_keys: IntArray) -> IntArray:
    """Return the start of each run of equal keys, and the length at the end."""
    if not len(sorted_keys):
        return np.zeros(1, dtype=np.int64)
    new = np.flatnonzero(np.diff(sorted_keys)) + 1
    return np.concatenate(([0], new, [len(sorted_keys)])).astype(np.int64)
