"""Match operators called by a compiled graph (matrix products, convolutions) to its source: the n-th call is the n-th.

Inductor's provenance names such a call `extern_kernels.mm` or `torch.ops.aten.convolution.default`; in the trace it is
an operator `aten::mm` right below the graph's call. Several calls of one name are matched by order only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.nest import by_group, nest
from torchwatt.tracing.traces.resolve import Host
from torchwatt.tracing.traces.sidecar import Shares, Sidecar


def extern_calls(
    host: Host, sidecar: Sidecar, rows: IntArray, launch: IntArray, compiled: IntArray, graphs: dict[int, str]
) -> Iterator[tuple[IntArray, Shares]]:
    """Yield records of operators that compiled graphs call, with the modules of each call.

    A graph call with a number of calls of an operator other than the compiler wrote is skipped.

    Args:
        host: The host side of the trace.
        sidecar: The compiler's provenance.
        rows: Records to match, all launched within the call of a compiled graph.
        launch: Each one's launch.
        compiled: Each one's call of a compiled graph.
        graphs: The graph's key by call.
    """
    ops, launches = host.trace.ops, host.trace.launches
    call = host.compiled_at(ops.thread, ops.start_ns)
    nested = nest(ops.thread, ops.start_ns, ops.end_ns)
    top = (call != NOBODY) & (np.append(call, NOBODY)[nested.parent] != call)
    op = nested.climb(nested.at(launches.thread[launch], launches.start_ns[launch]), top)
    mine = (op != NOBODY) & (np.append(call, NOBODY)[op] == compiled)
    written = {
        int(place): shares
        for number, members in by_group(np.where(top, call, NOBODY))
        if number in graphs
        for place, shares in _in_order(host, members[np.argsort(ops.start_ns[members])], graphs[number], sidecar)
    }
    for place, members in by_group(np.where(mine, op, NOBODY)):
        if place in written:
            yield rows[members], written[place]


def _in_order(host: Host, places: IntArray, graph: str, sidecar: Sidecar) -> Iterator[tuple[int, Shares]]:
    """Pair a graph call's operators of one name with the provenance, if they are equal in number."""
    names = host.trace.ops.name[places]
    for code, members in by_group(names):
        operator = host.trace.names[code].removeprefix("aten::")
        for key in (f"extern_kernels.{operator}", f"torch.ops.aten.{operator}.default"):
            shares_by_call = [sidecar.shares(graph, f"{key}#{i}") for i in range(len(members) + 1)]
            if shares_by_call[-1] is None and all(shares_by_call[:-1]):
                yield from (
                    (int(places[m]), shares) for m, shares in zip(members, shares_by_call, strict=False) if shares
                )
