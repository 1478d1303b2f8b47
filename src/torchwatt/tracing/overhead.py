"""Remove the cost of tracing from a traced call or step before it fills others. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.core.instants import interpolate
from torchwatt.core.meter import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class NetClock:
    """Maps clock times within a call or step to net time since its start: linear between the given instants."""

    t_ns: IntArray
    net_ns: FloatArray

    def at(self, t_ns: IntArray) -> FloatArray:
        """Return net times; an instant before the start is 0."""
        return interpolate(t_ns, self.t_ns, self.net_ns)

    @property
    def total_ns(self) -> float:
        """Return the net length of the call or step."""
        return float(self.net_ns[-1])


def net_clock(frame: tuple[int, int], start_ns: IntArray, end_ns: IntArray, cost_ns: float) -> NetClock:
    """Take the cost of logging each span out of the gaps beside it.

    A wrapper works just before its span begins and just after it ends: half of the cost is taken from each side, at
    most the gap itself.

    Args:
        frame: Start and end of the call or step.
        start_ns: Starts of the logged spans inside the frame, in any order.
        end_ns: Their ends.
        cost_ns: Of logging one span.
    """
    n = len(start_ns)
    t_ns = np.concatenate(([frame[0]], start_ns, end_ns, [frame[1]])).astype(np.int64)
    before = np.concatenate(([0.0], np.full(n, cost_ns / 2), np.zeros(n + 1)))
    after = np.concatenate((np.zeros(n + 1), np.full(n, cost_ns / 2), [0.0]))
    order = np.argsort(t_ns, kind="stable")
    t_ns, before, after = t_ns[order], before[order], after[order]
    gaps = np.diff(t_ns).astype(np.float64)
    taken = np.minimum(gaps, before[1:] + after[:-1])
    net_ns = np.concatenate(([0.0], np.cumsum(gaps - taken)))
    latest = np.append(np.flatnonzero(np.diff(t_ns)), len(t_ns) - 1)  # of coinciding instants the last
    return NetClock(t_ns[latest], net_ns[latest])
