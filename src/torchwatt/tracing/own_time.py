"""The time of this thread's own work: what other programs do to the clock meanwhile is no cost of tracing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_FINE_S = 1e-5  # Windows counts a thread's time in steps of 15 ms


def own_time() -> Callable[[], int]:
    """Return the finest clock that stands still while the thread does; a monotonic one where that is too coarse."""
    return time.thread_time_ns if time.get_clock_info("thread_time").resolution <= _FINE_S else time.monotonic_ns


class ThreadCpu:
    """CPU time of one thread since this was made on it; other threads may ask.

    The thread keeps an `AtEnd` of it, so that its time is still known when it has ended.
    """

    __slots__ = ("_begun_ns", "_native", "used_ns")

    def __init__(self, native: int) -> None:
        self._native = native
        self._begun_ns = time.thread_time_ns()
        self.used_ns: int | None = None  # of a thread that has ended

    def until_now_ns(self) -> int | None:
        """Return the CPU time so far, or up to the thread's end; None where the system does not tell."""
        if self.used_ns is not None:
            return self.used_ns
        try:
            fields = Path(f"/proc/self/task/{self._native}/schedstat").read_bytes().split()
        except OSError:
            return None
        return max(int(fields[0]) - self._begun_ns, 0)

    def end(self) -> None:
        """Keep the time up to now; on the thread itself."""
        self.used_ns = time.thread_time_ns() - self._begun_ns


class AtEnd:
    """Kept in a thread's local values only, so that it goes when the thread ends, and on that thread."""

    __slots__ = ("_cpu",)

    def __init__(self, cpu: ThreadCpu) -> None:
        self._cpu = cpu

    def __del__(self) -> None:
        self._cpu.end()
