"""Assign one owner to each device record, by rules in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Slot
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.graphs import Captured, Replays, label_replays
from torchwatt.tracing.traces.labels import COLLECTIVES, ORPHAN, TRANSFERS, is_collective, is_host_copy
from torchwatt.tracing.traces.launch import Links
from torchwatt.tracing.traces.outcome import CODE
from torchwatt.tracing.traces.resolve import Host
from torchwatt.tracing.traces.tables import COPY, KERNEL

CLAIMED = tuple(CODE[o] for o in ("module-forward", "module-backward", "recompute", "optimizer"))


@dataclass(frozen=True, slots=True, eq=False)
class Assigned:
    """Slot and outcome of each record; `compiled` is the compiled graph's call that launched it."""

    slot: IntArray
    outcome: IntArray
    compiled: IntArray
    replays: Replays


def assign(host: Host, links: Links, captures: tuple[Captured, ...]) -> Assigned:
    """Find the owner of each record.

    1. Collectives are communication, whatever launched them. 2. No launch: an orphan. 3. Replayed: the owner at
    capture, or what encloses the replay. 4. A copy between host and device outside modules, autograd nodes and
    optimizers is a transfer. 5. All other records belong to the owner of their launch.
    """
    records, launches, book = host.trace.records, host.trace.launches, host.claims.book
    launched = np.flatnonzero(links.launch != NOBODY)
    at = links.launch[launched]
    slot = np.full(len(records), book(ORPHAN), dtype=np.int64)
    outcome = np.full(len(records), CODE["orphan"], dtype=np.int64)
    slot[launched], outcome[launched] = host.at(launches.thread[at], launches.start_ns[at])
    compiled = np.full(len(records), NOBODY, dtype=np.int64)
    compiled[launched] = host.compiled_at(launches.thread[at], launches.start_ns[at])
    replays = label_replays(host, links, captures)
    _replayed(host, links, replays, slot, outcome)
    copies = (records.kind == COPY) & _by_name(host, is_host_copy)[records.name]
    moved = copies & (links.launch != NOBODY) & ~np.isin(outcome, CLAIMED)
    slot[moved], outcome[moved] = book(TRANSFERS), CODE["transfer"]
    collective = (records.kind == KERNEL) & (_by_name(host, is_collective)[records.name] | (records.collective == 1))
    slot[collective], outcome[collective] = book(COLLECTIVES), CODE["communication"]
    return Assigned(slot, outcome, compiled, replays)


def _replayed(host: Host, links: Links, replays: Replays, slot: IntArray, outcome: IntArray) -> None:
    mapped = replays.slot != NOBODY
    slot[mapped], outcome[mapped] = replays.slot[mapped], replays.outcome[mapped]
    unmapped = links.graph & ~mapped
    nameless = np.flatnonzero(unmapped & (outcome == CODE["outside"]))
    launch = links.launch[nameless]
    # A slot per launch site would be one per replay: graphs are distinguished by their number of kernels.
    sizes = dict(zip(*np.unique(links.launch[links.graph], return_counts=True), strict=True))
    slot[nameless] = [host.claims.book(Slot(f"(graph of {sizes[i]} nodes)", "other")) for i in launch.tolist()]
    outcome[unmapped] = CODE["graph"]


def _by_name(host: Host, says: Callable[[str], bool]) -> NDArray[np.bool_]:
    return np.array([says(name) for name in host.trace.names] or [False], dtype=np.bool_)
