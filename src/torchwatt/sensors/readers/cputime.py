"""CPU time and memory of one process and its children, and of the whole machine, from /proc and clocks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from torchwatt.core.errors import SensorError
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.readers.files import KeptFile
from torchwatt.sensors.readers.portable import PortableFamily, PortableMachine

_RESCAN_NS = NS_PER_S  # children are looked for once a second
_HAS_PROC = Path("/proc/stat").exists()
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the clock of a whole process's scheduled time


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used, at nanosecond resolution.

    The clock id of another process is (~pid << 3) | CPUCLOCK_SCHED (clock_getcpuclockid(3), linux/posix-timers.h).
    """
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) / NS_PER_S


def children_of(pid: int) -> list[int]:
    """Return all living descendants; a thread each may have started some."""
    found: list[int] = []
    todo = [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                born = [int(word) for word in (thread / "children").read_bytes().split()]
                found += born
                todo += born
    return found


def is_sampler(pid: int) -> bool:
    """Return whether a process is a sampler of ours, this session's or another's: its cost is told elsewhere."""
    try:
        return b"torchwatt.sensors.sampler_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class Family:
    """One process and its descendants, less torchwatt's samplers.

    A child that ends keeps the CPU time that was last seen of it, so the sum never falls. A child that lives
    for less than a second may be missed altogether.
    """

    def __init__(self, pid: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.pid = pid
        self._clock_ns = clock_ns
        self._cpu_s: dict[int, float] = {pid: 0.0}
        self._alive: tuple[int, ...] = (pid,)
        self._scanned_ns: int | None = None

    def cpu_s(self) -> float:
        """Return cumulative CPU seconds.

        Raises:
            SensorError: SENSOR_LOST when the process itself is gone.
        """
        self._scan()
        for pid in self._alive:
            try:
                self._cpu_s[pid] = process_cpu_s(pid)
            except OSError as error:
                if pid == self.pid:
                    raise SensorError(f"process {pid}: it has ended", code="SENSOR_LOST") from error
        return sum(self._cpu_s.values())

    def rss_bytes(self) -> float:
        """Return the resident bytes of all living members; shared pages count in each."""
        self._scan()
        pages = 0
        for pid in self._alive:
            with contextlib.suppress(OSError, ValueError, IndexError):
                pages += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))

    def _scan(self) -> None:
        now_ns = self._clock_ns()
        if self._scanned_ns is None or now_ns - self._scanned_ns >= _RESCAN_NS:
            self._scanned_ns = now_ns
            self._alive = (self.pid, *(p for p in children_of(self.pid) if not is_sampler(p)))


class Machine:
    """The busy time of all CPUs together, from the first line of /proc/stat (proc(5))."""

    def __init__(self, path: str = "/proc/stat") -> None:
        self._file = KeptFile(path)
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    def busy_s(self) -> float:
        """Return cumulative busy CPU seconds: user, nice, system, irq, softirq; not idle, iowait, steal.

        Guest time is inside user already.
        """
        fields = self._file.read(512).split(b"\n", 1)[0].split()
        try:
            user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in fields[1:8])
        except ValueError as error:
            raise SensorError(f"{self._file.path}: its first line is not that of proc(5): {error}") from error
        return (user + nice + system + irq + softirq) * self._tick_s

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def family(pid: int) -> Family | PortableFamily:
    """Return what counts a process's CPU time and memory here."""
    return Family(pid) if _HAS_PROC else PortableFamily(pid)


def machine() -> Machine | PortableMachine:
    """Return what counts the machine's CPU time here."""
    return Machine() if _HAS_PROC else PortableMachine()
