"""Whether the driver's own ring of power samples can be followed: how fine it is, how deep, on which clock."""

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
MOST_GAP_NS = 50_000_000  # coarser is no better than the power field, which is published every 100 ms
READ_NS = NS_PER_S
TIME_SHARE = 0.01  # of the time, all GPUs together


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring of samples: how far they are apart (ms resolution), and how far back it reaches."""

    gap_ns: int
    depth_ns: int


def ring_of(samples: Sequence[Sample]) -> Ring:
    """Look at what a ring holds.

    Raises:
        SensorError: It cannot be followed (NOT_SUPPORTED), and why.
    """
    stamps_us = sorted({us for us, _ in samples})
    if len(stamps_us) < LEAST_SAMPLES:
        raise _unusable(f"it holds {len(stamps_us)} samples")
    if clock_of(stamps_us[-1]) is None:
        raise _unusable("its time stamps are on no known clock, or it stands still")
    gap_us = statistics.median(b - a for a, b in pairwise(stamps_us))
    if gap_us * 1000 > MOST_GAP_NS:
        raise _unusable(f"its samples are {gap_us / 1e3:.3g} ms apart")
    return Ring(max(round(gap_us / 1000), 1) * 1_000_000, (stamps_us[-1] - stamps_us[0]) * 1000)


def read_period_ns(ring: Ring, call_s: float, devices: int) -> int:
    """Return how often to read a ring: about once a second, early enough that nothing in it is lost.

    Args:
        ring: The shortest.
        call_s: What one read costs.
        devices: How many GPUs are read.

    Raises:
        SensorError: So many reads would take more than 1 % of the time (NOT_SUPPORTED).
    """
    most_ns = ring.depth_ns // 2
    cheap_ns = math.ceil(call_s * devices / TIME_SHARE * 1e3) * 1_000_000
    if cheap_ns > most_ns:
        raise _unusable(f"a read takes {call_s * 1e3:.3g} ms, and its {ring.depth_ns / NS_PER_S:.3g} s need many")
    return min(max(READ_NS, cheap_ns), most_ns)


def _unusable(why: str) -> SensorError:
    return SensorError(why, code="NOT_SUPPORTED")
