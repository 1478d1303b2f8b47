"""Find the owners of a replayed CUDA or HIP graph's kernels: the calls that were captured, in order.

A replay is one launch of many kernels. During the capture each kernel had a separate launch, which ran nothing,
inside the module that called it. If capture and replay agree in number and names, the n-th kernel of a name is the n-th
launch of that name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torchwatt.core.intervals import NO_INDEX, groups_of
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Slot
from torchwatt.kineto.host_timeline import HostTimeline
from torchwatt.kineto.joined_trace import OUTCOME_CODES
from torchwatt.kineto.kineto_trace import KERNEL, KinetoTrace, LaunchLinks, link_launches, match_names

_BEGIN, _END = re.compile(r"StreamBeginCapture"), re.compile(r"StreamEndCapture")
_KERNEL = re.compile(r"Launch\w*Kernel")
UNNAMED = ""  # CUDA launches carry no kernel name
MOST_MISSING = 0.01  # part of a graph that a replay may lack


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """One captured graph: kernel names in order of capture (`UNNAMED` if not in the trace), and their owners."""

    names: tuple[str, ...]
    slots: tuple[Slot, ...]
    outcomes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GraphReplays:
    """Slot and outcome of records of replays, -1 where no capture matches."""

    slot: IntArray
    outcome: IntArray
    graphs: int  # number of replays
    mapped: int


def captures_of(host: HostTimeline, links: LaunchLinks | None = None) -> tuple[CapturedGraph, ...]:
    """Return the graphs whose capture is in the trace, in order."""
    trace = host.trace
    launches = trace.launches
    waiting = (links or link_launches(trace)).unanswered
    waiting = waiting[match_names(trace, _KERNEL)[launches.name[waiting]]]
    slot, outcome = host.at(launches.thread[waiting], launches.start_ns[waiting])
    slots = tuple(host.claims.book.numbers)
    captures = []
    for begin, end in _windows(trace):
        mine = np.flatnonzero((launches.start_ns[waiting] >= begin) & (launches.start_ns[waiting] < end))
        codes = launches.kernel[waiting[mine]].tolist()
        names = tuple(trace.names[code] if code >= 0 else UNNAMED for code in codes)
        if names:
            owner = tuple(slots[i] for i in slot[mine].tolist())
            captures.append(CapturedGraph(names, owner, tuple(outcome[mine].tolist())))
    return tuple(captures)


def _windows(trace: KinetoTrace) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each capture; work captured by other threads (backward) lies inside as well."""
    launches = trace.launches
    begins = np.sort(launches.start_ns[match_names(trace, _BEGIN)[launches.name]])
    ends = np.sort(launches.start_ns[match_names(trace, _END)[launches.name]])
    for begin in begins.tolist():
        after = np.searchsorted(ends, begin)
        if after < len(ends):
            yield begin, int(ends[after])


def label_replays(host: HostTimeline, links: LaunchLinks, captures: tuple[CapturedGraph, ...]) -> GraphReplays:
    """Label the records of every replay whose capture is in the trace."""
    records, book = host.trace.records, host.claims.book
    slot = np.full(len(records), NO_INDEX, dtype=np.int64)
    outcome = np.full(len(records), NO_INDEX, dtype=np.int64)
    replays = _replays(host.trace, links)
    names = [tuple(host.trace.names[code] for code in records.name[rows].tolist()) for rows in replays]
    fits = [tuple(i for i, c in enumerate(captures) if pair_kernels(kernels, c.names) is not None) for kernels in names]
    turns: Counter[tuple[int, ...]] = Counter()
    mapped = 0
    for rows, kernels, fit in zip(replays, names, fits, strict=True):
        chosen = _choose(fit, captures, turns, fits.count(fit))
        place = pair_kernels(kernels, chosen.names) if chosen is not None else None
        if chosen is None or place is None:
            continue
        slot[rows] = [book(chosen.slots[i]) if i != NO_INDEX else NO_INDEX for i in place]
        outcome[rows] = [chosen.outcomes[i] if i != NO_INDEX else NO_INDEX for i in place]
        mapped += 1
    nameless = (
        outcome == OUTCOME_CODES["outside"]
    )  # captured outside of every name: what encloses the replay is more specific
    slot[nameless], outcome[nameless] = NO_INDEX, NO_INDEX
    return GraphReplays(slot, outcome, len(replays), mapped)


def _replays(trace: KinetoTrace, links: LaunchLinks) -> list[IntArray]:
    """Return the kernels of each replay in the order of their nodes, or of time where nodes have no number."""
    records = trace.records
    rows = np.flatnonzero(links.graph & (records.kind == KERNEL))
    numbered = bool((records.node[rows] >= 0).all())
    rows = rows[np.lexsort((records.start_ns[rows], records.node[rows] if numbered else np.zeros_like(rows)))]
    groups = [rows[members] for _, members in groups_of(links.launch[rows])]
    return sorted(groups, key=lambda rows: int(trace.launches.start_ns[links.launch[rows[0]]]))


def _choose(
    fit: tuple[int, ...], captures: tuple[CapturedGraph, ...], turns: Counter[tuple[int, ...]], replays: int
) -> CapturedGraph | None:
    """Return the only capture that matches; several equal ones (layers captured one by one) are used in turn."""
    if not fit:
        return None
    if len({captures[i].slots for i in fit}) > 1 and replays % len(fit):
        return None  # not a whole number of rounds: the capture is ambiguous
    turns[fit] += 1
    return captures[fit[(turns[fit] - 1) % len(fit)]]


def pair_kernels(names: Sequence[str], captured: Sequence[str]) -> list[int] | None:
    """Return for each replayed kernel its place in the capture, or None where the two do not agree.

    In order if the names agree in order; name by name where streams changed the order. A few kernels may be missing
    from a replay in one place (the trace ended): those around the gap that fit either side are -1.
    """
    if len(names) == len(captured):
        if all(b in {UNNAMED, a} for a, b in zip(names, captured, strict=True)):
            return list(range(len(names)))
        if sorted(names) != sorted(captured):
            return None
        by_name = sorted(range(len(names)), key=names.__getitem__)
        place = dict(zip(by_name, sorted(range(len(captured)), key=captured.__getitem__), strict=True))
        return [place[i] for i in range(len(names))]
    missing = len(captured) - len(names)
    if UNNAMED in captured or not 0 < missing <= MOST_MISSING * len(captured):
        return None
    head = _common_length(names, captured)
    tail = _common_length(names[::-1], captured[::-1])
    if head + tail < len(names):
        return None
    sure_head, sure_tail = len(names) - tail, len(names) - head
    middle = len(names) - sure_head - sure_tail
    return [*range(sure_head), *[NO_INDEX] * middle, *range(len(captured) - sure_tail, len(captured))]


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the number of equal names from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
