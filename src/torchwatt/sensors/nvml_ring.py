"""Checks whether the driver's ring of power samples is usable: its resolution, depth and clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torchwatt.core.errors import SensorError
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.readers.samples import Sample, clock_of

LEAST_SAMPLES = 5
MOST_GAP_NS = 50_000_000  # coarser has no advantage over the power field, published every 100 ms
READ_NS = NS_PER_S
TIME_SHARE = 0.01  # largest share of time spent in reads of all GPUs


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring of samples: time between samples (whole ms) and time that it covers."""

    gap_ns: int
    depth_ns: int


def ring_of(samples: Sequence[Sample]) -> Ring:
    """Measure a ring's resolution and depth.

    Raises:
        SensorError: The ring has fewer than 5 samples, an unknown clock, or gaps over 50 ms (NOT_SUPPORTED).
    """
    stamps_us = sorted({us for us, _ in samples})
    if len(stamps_us) < LEAST_SAMPLES:
        raise _unusable(f"it holds {len(stamps_us)} samples")
    if clock_of(stamps_us[-1]) is None:
        raise _unusable("its time stamps match no known clock, or it has no new samples")
    gap_us = statistics.median(b - a for a, b in pairwise(stamps_us))
    if gap_us * 1000 > MOST_GAP_NS:
        raise _unusable(f"its samples are {gap_us / 1e3:.3g} ms apart")
    return Ring(max(round(gap_us / 1000), 1) * 1_000_000, (stamps_us[-1] - stamps_us[0]) * 1000)


def read_period_ns(ring: Ring, call_s: float, devices: int) -> int:
    """Return the period for reading a ring: 1 s, longer if reads are slow, at most half of its depth.

    Args:
        ring: The ring.
        call_s: Seconds per read.
        devices: Number of GPUs to read.

    Raises:
        SensorError: Reads at that period would take more than 1 % of the time (NOT_SUPPORTED).
    """
    most_ns = ring.depth_ns // 2
    cheap_ns = math.ceil(call_s * devices / TIME_SHARE * 1e3) * 1_000_000
    if cheap_ns > most_ns:
        raise _unusable(f"a read takes {call_s * 1e3:.3g} ms, too long for a ring of {ring.depth_ns / NS_PER_S:.3g} s")
    return min(max(READ_NS, cheap_ns), most_ns)


def _unusable(why: str) -> SensorError:
    return SensorError(why, code="NOT_SUPPORTED")
