"""Match device records to the calls that launched them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.tables import Kineto

# Runtime and driver calls that put work on a stream, in CUDA's and HIP's spelling.
_WORK = re.compile(r"^(?:cuda|cu|hip)\w*(?:Launch\w*Kernel|Memcpy|Memset)|^(?:cuda|cu|hip)LaunchKernel")
_GRAPH = re.compile(r"^(?:cuda|cu|hip)GraphLaunch")


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """`launch` is each record's launch, -1 for orphans; `graph`: whether that launch replays a graph."""

    launch: IntArray
    graph: NDArray[np.bool_]
    unanswered: IntArray  # launches of work without a record, in order of time
    ambiguous: int  # records whose correlation id several launches have


def link(trace: Kineto) -> Links:
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
    launch = np.full(len(records), NOBODY, dtype=np.int64)
    launch[linked] = order[place[linked]]
    graph = np.zeros(len(records), dtype=np.bool_)
    graph[linked] = named(trace, _GRAPH)[launches.name[launch[linked]]]
    return Links(launch, graph, _unanswered(trace, launch), len(several))


def _unanswered(trace: Kineto, launch: IntArray) -> IntArray:
    launches = trace.launches
    answered = np.zeros(len(launches), dtype=np.bool_)
    answered[launch[launch != NOBODY]] = True
    work = named(trace, _WORK)[launches.name] & ~answered
    places = np.flatnonzero(work)
    return places[np.argsort(launches.start_ns[places], kind="stable")]


def named(trace: Kineto, pattern: re.Pattern[str]) -> NDArray[np.bool_]:
    """Return for each name of the trace whether the pattern matches in it."""
    return np.array([pattern.search(name) is not None for name in trace.names] or [False], dtype=np.bool_)
