"""Measure a thread's own CPU time: time taken by other programs is no cost of tracing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_FINE_S = 1e-5  # Windows measures thread time in steps of 15 ms


def own_time() -> Callable[[], int]:
    """Return the clock of thread CPU time; the monotonic clock where that is too coarse."""
    return time.thread_time_ns if time.get_clock_info("thread_time").resolution <= _FINE_S else time.monotonic_ns


class ThreadCpu:
    """CPU time of one thread since the object was made on it; other threads may read it.

    The thread keeps an `AtEnd` of it, which stores the time when the thread ends.
    """

    __slots__ = ("_begun_ns", "_native", "used_ns")

    def __init__(self, native: int) -> None:
        self._native = native
        self._begun_ns = time.thread_time_ns()
        self.used_ns: int | None = None  # set when the thread has ended

    def until_now_ns(self) -> int | None:
        """Return the CPU time so far, or up to the thread's end; None where the system does not provide it."""
        if self.used_ns is not None:
            return self.used_ns
        try:
            fields = Path(f"/proc/self/task/{self._native}/schedstat").read_bytes().split()
        except OSError:
            return None
        return max(int(fields[0]) - self._begun_ns, 0)

    def end(self) -> None:
        """Store the time so far; on the thread itself."""
        self.used_ns = time.thread_time_ns() - self._begun_ns


class AtEnd:
    """Kept only in a thread's local values, so that it is deleted when the thread ends, on that thread."""

    __slots__ = ("_cpu",)

    def __init__(self, cpu: ThreadCpu) -> None:
        self._cpu = cpu

    def __del__(self) -> None:
        self._cpu.end()
