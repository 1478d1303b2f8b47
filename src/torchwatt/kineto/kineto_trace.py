"""A trace as columns: device records, their launches, and the operators and ranges on the host's threads."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.intervals import NO_INDEX
from torchwatt.core.meter import IntArray

KERNEL, COPY, FILL = range(3)  # what a record is
MODULE, OWN, ANNOTATION = range(3)  # python's nn.Module call, a range named by us, any other annotation


@dataclass(frozen=True, slots=True, eq=False)
class DeviceRecords:
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
class LaunchCalls:
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
class Operators:
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
class HostRanges:
    """Named ranges on the host."""

    thread: IntArray
    start_ns: IntArray
    end_ns: IntArray
    name: IntArray
    kind: IntArray

    def __len__(self) -> int:
        return len(self.thread)


@dataclass(frozen=True, slots=True, eq=False)
class FlowArrows:
    """Arrows from a forward operator to its backward node: both ends, joined by `key`."""

    thread: IntArray
    t_ns: IntArray
    key: IntArray
    arrives: IntArray

    def __len__(self) -> int:
        return len(self.thread)


@dataclass(frozen=True, slots=True, eq=False)
class KinetoTrace:
    """One trace file. Times are unix nanoseconds where `clock` is known; `name` columns point into `names`.

    `notes` have one sentence for each kind of omission, with its reason.
    """

    source: str
    names: tuple[str, ...]
    signatures: tuple[str, ...]
    threads: tuple[int, ...]  # the operating system's thread numbers, by thread code
    records: DeviceRecords
    launches: LaunchCalls
    ops: Operators
    ranges: HostRanges
    flows: FlowArrows
    events: int
    clock: str  # "base": written in the trace; "unix": microseconds, by their size; "unknown"
    rank: int | None = None
    device_names: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()


# Runtime and driver calls that put work on a stream, in CUDA's and HIP's spelling.
_WORK = re.compile(r"^(?:cuda|cu|hip)\w*(?:Launch\w*Kernel|Memcpy|Memset)|^(?:cuda|cu|hip)LaunchKernel")
_GRAPH = re.compile(r"^(?:cuda|cu|hip)GraphLaunch")


@dataclass(frozen=True, slots=True, eq=False)
class LaunchLinks:
    """`launch` is each record's launch, -1 for orphans; `graph`: whether that launch replays a graph."""

    launch: IntArray
    graph: NDArray[np.bool_]
    unanswered: IntArray  # launches of work without a record, in order of time
    ambiguous: int  # records whose correlation id several launches have


def link_launches(trace: KinetoTrace) -> LaunchLinks:
    """Find each record's launch by its correlation id.

    Of several launches with one id (the counter wrapped, traces were merged), the last that began before the record is
    used.
    """
    records, launches = trace.records, trace.launches
    order = np.lexsort((launches.start_ns, launches.correlation))
    sorted_ids = launches.correlation[order]
    begin = np.searchsorted(sorted_ids, records.correlation, side="left")
    after = np.searchsorted(sorted_ids, records.correlation, side="right")
    linked = (after > begin) & (records.correlation >= 0)
    place = begin.copy()
    several = np.flatnonzero(linked & (after - begin > 1))
    for i in several:
        begun = np.searchsorted(launches.start_ns[order[begin[i] : after[i]]], records.start_ns[i], side="right")
        place[i] = begin[i] + max(int(begun) - 1, 0)
    launch = np.full(len(records), NO_INDEX, dtype=np.int64)
    launch[linked] = order[place[linked]]
    graph = np.zeros(len(records), dtype=np.bool_)
    graph[linked] = match_names(trace, _GRAPH)[launches.name[launch[linked]]]
    return LaunchLinks(launch, graph, _unanswered_launches(trace, launch), len(several))


def _unanswered_launches(trace: KinetoTrace, launch: IntArray) -> IntArray:
    launches = trace.launches
    answered = np.zeros(len(launches), dtype=np.bool_)
    answered[launch[launch != NO_INDEX]] = True
    work = match_names(trace, _WORK)[launches.name] & ~answered
    places = np.flatnonzero(work)
    return places[np.argsort(launches.start_ns[places], kind="stable")]


def match_names(trace: KinetoTrace, pattern: re.Pattern[str]) -> NDArray[np.bool_]:
    """Return for each name of the trace whether the pattern matches in it."""
    return np.array([pattern.search(name) is not None for name in trace.names] or [False], dtype=np.bool_)
