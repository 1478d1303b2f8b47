"""The time of this thread's own work: what other programs do to the clock meanwhile is no cost of tracing."""

from __future__ import annotations

import time
from collections.abc import Callable

_FINE_S = 1e-5  # Windows counts a thread's time in steps of 15 ms


def own_time() -> Callable[[], int]:
    """Return the finest clock that stands still while the thread does; a monotonic one where that is too coarse."""
    return time.thread_time_ns if time.get_clock_info("thread_time").resolution <= _FINE_S else time.monotonic_ns
