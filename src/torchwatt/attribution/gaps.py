"""Classify the time outside all spans."""

from __future__ import annotations

import numpy as np

from torchwatt.attribution.timeline import NOBODY, Pieces
from torchwatt.core.instants import interpolate
from torchwatt.core.meter import IntArray, Series
from torchwatt.core.terms import IDLE, OUTSIDE, UNATTRIBUTED, Slot
from torchwatt.core.trace import Trace
from torchwatt.core.units import NS_PER_S

GAP_SLOTS = (Slot(IDLE, "other"), Slot(UNATTRIBUTED, "other"), Slot(OUTSIDE, "other"))

# Shorter pauses between two kernels of work are part of the work.
IDLE_MIN_NS = 100_000_000
# A shorter pause contains no complete interval between two readings of the process's CPU time.
IDLE_MIN_PERIODS = 2
# Below this use of one CPU the process did nothing.
IDLE_CPU_SHARE = 0.05


def name_gaps(pieces: Pieces, trace: Trace, process_cpu: Series | None) -> Pieces:
    """Give every gap a slot: those of GAP_SLOTS follow the trace's own.

    Before the first and after the last span is `(outside)`. In between, a gap of at least 0.1 s, and of two readings of
    the process's CPU time, in which it used less than 5 % of one CPU is `(idle)`; every other gap is `(unattributed)`
    work: Python between the modules. Without the process's CPU time no gap is idle.
    """
    base = len(trace.slots)
    gap = np.flatnonzero(pieces.slot == NOBODY)
    slot = pieces.slot.copy()
    slot[gap] = base + GAP_SLOTS.index(Slot(UNATTRIBUTED, "other"))
    idle = gap[_is_idle(pieces.start_ns[gap], pieces.end_ns[gap], process_cpu)]
    slot[idle] = base + GAP_SLOTS.index(Slot(IDLE, "other"))
    if len(trace):
        outside = (pieces.end_ns[gap] <= trace.start_ns.min()) | (pieces.start_ns[gap] >= trace.end_ns.max())
        slot[gap[outside]] = base + GAP_SLOTS.index(Slot(OUTSIDE, "other"))
    return Pieces(pieces.start_ns, pieces.end_ns, slot, pieces.filled, pieces.weight)


def _is_idle(start_ns: IntArray, end_ns: IntArray, process_cpu: Series | None) -> np.ndarray:
    if process_cpu is None or len(process_cpu) < 2:
        return np.zeros(len(start_ns), dtype=np.bool_)
    # CPU time never falls: where two readers found different children, the higher value is right.
    cpu_s = np.maximum.accumulate(process_cpu.raw * process_cpu.channel.scale)
    used_s = interpolate(end_ns, process_cpu.t_ns, cpu_s) - interpolate(start_ns, process_cpu.t_ns, cpu_s)
    length_s = (end_ns - start_ns) / NS_PER_S
    least_ns = max(IDLE_MIN_NS, IDLE_MIN_PERIODS * process_cpu.channel.period_ns)
    long_enough = end_ns - start_ns >= least_ns
    return np.asarray(long_enough & (used_s < IDLE_CPU_SHARE * length_s), dtype=np.bool_)
