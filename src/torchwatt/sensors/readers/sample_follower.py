"""Reads new samples from a driver's ring: each once, in time order, converted to the monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from torchwatt.core.errors import SensorError

Sample = tuple[int, float]  # microseconds of the driver's clock, raw value
SampleQuery = Callable[[int], Sequence[Sample]]  # returns the samples newer than a time in microseconds (0: all)
DriverClock = Callable[[], int]

# The driver stamps with the wall clock (580.159 on an H100) or with the time since boot (polarsignals
# gpu-metrics-agent PR 36); the newest sample, some 16 ms old there, shows which.
CLOCKS: Mapping[str, DriverClock] = MappingProxyType(
    {
        "CLOCK_REALTIME": time.time_ns,
        **(
            {"CLOCK_BOOTTIME": lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)}
            if hasattr(time, "CLOCK_BOOTTIME")
            else {}
        ),
    }
)
AGES_NS = (-100_000_000, 2_000_000_000)  # range of the age of the newest sample in a live ring
# A wall clock that moves by more between two reads was set; slewing (500 ppm) stays below.
STEP_NS = 5_000_000
CLOCK_READS = 3
DEPTH_NS = 5_000_000_000  # longer than any known ring: an H100's holds 2.4 s


def matching_clock(newest_us: int, clocks: Mapping[str, DriverClock] = CLOCKS) -> str | None:
    """Return the name of the clock by which a ring's newest sample has a plausible age, else None."""
    for name, clock in clocks.items():
        if AGES_NS[0] < clock() - newest_us * 1000 < AGES_NS[1]:
            return name
    return None


class SampleFollower:
    """Returns the new samples of one ring at each read.

    Samples from before the first read are skipped. A sample is accepted if it is newer than the last one on both clocks
    and not in the future; others are duplicates, or were stamped before the wall clock was set.
    """

    def __init__(self, clocks: Mapping[str, DriverClock] = CLOCKS, mono_ns: DriverClock = time.monotonic_ns) -> None:
        self._clocks = clocks
        self._mono_ns = mono_ns
        self._clock: DriverClock | None = None
        self._ahead_ns = 0  # the driver's clock minus the monotonic one
        self._newest_us = 0
        self._newest_ns = 0

    def take(self, ask: SampleQuery) -> list[Sample]:
        """Return (monotonic ns, raw value) of the samples since the last read, in time order.

        Raises:
            SensorError: The ring's time stamps match no known clock (NOT_SUPPORTED).
        """
        if self._clock is None:
            self._begin(ask(0))
            return []
        samples = ask(self._newest_us)
        now_ns, ahead_ns = self._read_clocks(self._clock)
        step_ns, self._ahead_ns = ahead_ns - self._ahead_ns, ahead_ns
        if abs(step_ns) > STEP_NS:
            self._pass_over(now_ns, step_ns)
            return []
        return list(self._new(samples, now_ns))

    def _begin(self, samples: Sequence[Sample]) -> None:
        if not samples:
            return  # no samples yet: try again at the next read
        name = matching_clock(max(us for us, _ in samples), self._clocks)
        if name is None:
            message = "the driver's ring of samples matches no known clock, or has no new samples"
            raise SensorError(message, code="NOT_SUPPORTED")
        self._clock = self._clocks[name]
        self._newest_ns, self._ahead_ns = self._read_clocks(self._clock)
        self._newest_us = (self._newest_ns + self._ahead_ns) // 1000

    def _read_clocks(self, clock: DriverClock) -> tuple[int, int]:
        """Return the monotonic time and the offset of the driver's clock from it, in ns."""
        clock_reads = [(self._mono_ns(), clock(), self._mono_ns()) for _ in range(CLOCK_READS)]
        before_ns, driver_ns, after_ns = min(
            clock_reads, key=lambda clock_read: clock_read[2] - clock_read[0]
        )  # the least preempted one
        return clock_reads[-1][2], driver_ns - (before_ns + after_ns) // 2

    def _pass_over(self, now_ns: int, step_ns: int) -> None:
        """Skip samples that may have been stamped before the wall clock was set, whose times are ambiguous.

        After a step back, old stamps lie in the future by up to that step, for at most the depth of a ring.
        """
        self._newest_ns = min(max(self._newest_ns, now_ns) + max(-step_ns, 0), now_ns + DEPTH_NS)
        self._newest_us = (self._newest_ns + self._ahead_ns) // 1000

    def _new(self, samples: Sequence[Sample], now_ns: int) -> Iterator[Sample]:
        for us, raw in sorted(samples):
            t_ns = us * 1000 - self._ahead_ns
            if us > self._newest_us and self._newest_ns < t_ns <= now_ns:
                self._newest_us, self._newest_ns = us, t_ns
                yield t_ns, raw
