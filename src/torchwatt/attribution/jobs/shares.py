"""Shares of a rank's CPU time by slot: the weights by which its part of its machine's joules is split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchwatt.attribution.split import split
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.instants import interpolate
from torchwatt.core.job import HostShare
from torchwatt.core.meter import Recording, Series
from torchwatt.core.terms import UNATTRIBUTED, Domain
from torchwatt.core.trace import Trace

PROCESS_CPU, BUSY_CPU = "process/process_cpu", "process/busy_cpu"
MOST_POINTS = 400


def host_shares(recording: Recording, trace: Trace, start_ns: int, end_ns: int) -> tuple[HostShare, ...]:
    """Split the process's CPU seconds over the slots of the trace, as joules are split: interval by interval, by time.

    CPU seconds replace joules here, so that a slot with eight busy threads weighs more than one that waited. Empty
    where no CPU time was read.
    """
    points = cpu_points(recording, PROCESS_CPU, start_ns, end_ns)
    if len(points) < 2 or points[-1][1] <= points[0][1]:
        return ()
    t_ns = np.array([t for t, _ in points], dtype=np.int64)
    cpu_s = np.array([s for _, s in points]) - points[0][1]
    curve = EnergyCurve(Domain("cpu"), t_ns, np.maximum.accumulate(cpu_s), "load_model", "modelled")
    entries = split(curve, trace, recording.get(PROCESS_CPU)).entries(None, None)
    return tuple(
        HostShare(e.fqn, e.phase, max(e.energy_self_j, 0.0), e.time_self_s, e.calls, e.carried_share)
        for e in entries
    )  # fmt: skip


def cpu_points(recording: Recording, key: str, start_ns: int, end_ns: int) -> tuple[tuple[int, float], ...]:
    """Return (t_ns, CPU seconds so far) inside a window, cut at its ends."""
    series = recording.get(key)
    if series is None or len(series) < 2:
        return ()
    readings = _distinct(series)
    if len(readings.t_ns) < 2:
        return ()
    lo, hi = max(start_ns, int(readings.t_ns[0])), min(end_ns, int(readings.t_ns[-1]))
    if hi <= lo:
        return ()
    inner_ns = readings.t_ns[(readings.t_ns > lo) & (readings.t_ns < hi)]
    t_ns = np.concatenate(([lo], inner_ns, [hi]))
    raw = interpolate(t_ns, readings.t_ns, np.maximum.accumulate(readings.raw)) * readings.channel.scale
    return tuple(zip(t_ns.tolist(), raw.tolist(), strict=True))


def _distinct(series: Series) -> Series:
    """Keep finite readings, one an instant."""
    keep = np.isfinite(series.raw)
    t_ns, indices = np.unique(series.t_ns[keep], return_index=True)
    raw = series.raw[keep][indices]
    return Series(series.channel, t_ns, raw, np.zeros_like(t_ns))


def thinned(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Keep the ends and at most some hundred points between: enough to interpolate CPU time in a part of the run."""
    if len(points) <= MOST_POINTS:
        return tuple(points)
    chosen = np.unique(np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int))
    return tuple(points[i] for i in chosen.tolist())


def nothing_traced(cpu_s: float) -> tuple[HostShare, ...]:
    """Return the share of a rank without layers."""
    return (HostShare(UNATTRIBUTED, "other", cpu_s, 0.0, 0),)
