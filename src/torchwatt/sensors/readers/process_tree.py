"""CPU time and memory of one process and its children, and of the whole machine, from /proc and clocks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torchwatt.core.errors import SensorError
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.readers.kernel_files import KernelFile

_PORTABLE_RESCAN_NS = NS_PER_S


class PortableProcessTree:
    """CPU time and memory of a process and its descendants without torchwatt's samplers, with psutil's resolution."""

    def __init__(self, pid: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        import psutil

        self._psutil = psutil
        self._clock_ns = clock_ns
        self._process = psutil.Process(pid)
        self._members = [self._process]
        self._cpu_s: dict[int, float] = {}
        self._scanned_ns: int | None = None

    def cpu_s(self) -> float:
        """Return cumulative CPU seconds, including the last values of ended children.

        Raises:
            SensorError: The process has ended (SENSOR_LOST).
        """
        self._scan()
        for member in self._members:
            try:
                times = member.cpu_times()
            except self._psutil.Error as error:
                if member is self._process:
                    raise SensorError(f"process {member.pid}: it has ended", code="SENSOR_LOST") from error
            else:
                self._cpu_s[member.pid] = times.user + times.system
        return sum(self._cpu_s.values())

    def children_s(self) -> float:
        """Return the part of the last `cpu_s` that belongs to descendants."""
        return sum(seconds for pid, seconds in self._cpu_s.items() if pid != self._process.pid)

    def pids(self) -> tuple[int, ...]:
        """Return the process and its living descendants."""
        self._scan()
        return tuple(member.pid for member in self._members)

    def rss_bytes(self) -> float:
        """Return the resident bytes of all living members; shared pages count in each."""
        self._scan()
        total = 0
        for member in self._members:
            with contextlib.suppress(self._psutil.Error):
                total += member.memory_info().rss
        return float(total)

    def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def _scan(self) -> None:
        now_ns = self._clock_ns()
        if self._scanned_ns is None or now_ns - self._scanned_ns >= _PORTABLE_RESCAN_NS:
            self._scanned_ns = now_ns
            with contextlib.suppress(self._psutil.Error):
                children = self._process.children(recursive=True)
                self._members = [self._process, *(child for child in children if not self._is_sampler(child))]

    def _is_sampler(self, child: object) -> bool:
        try:
            return "torchwatt.sensors.sampler_main" in " ".join(child.cmdline())  # type: ignore[attr-defined]
        except self._psutil.Error:
            return False


class PortableMachineCpu:
    """The busy time of all CPUs together, through psutil."""

    def __init__(self) -> None:
        import psutil

        self._cpu_times = psutil.cpu_times

    def busy_s(self) -> float:
        """Return cumulative busy CPU seconds: not idle, not waiting for disks."""
        times = self._cpu_times()
        names = ("user", "nice", "system", "irq", "softirq", "interrupt", "dpc")
        return float(sum(getattr(times, name, 0.0) for name in names))

    def close(self) -> None:
        """Do nothing: nothing is kept open."""


_RESCAN_NS = NS_PER_S  # shortest time between searches for children
_RESCAN_ANYWAY_NS = 10 * NS_PER_S  # longest time, if no process seems to be new
_RESCAN_COSTS = 1000  # least time between searches as a multiple of their duration: 2 s for a search of 2 ms
_HAS_PROC = Path("/proc/stat").exists()
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the clock of a whole process's scheduled time


class ProcessTreeUsage(Protocol):
    """Counter of the CPU time and memory of a process and its descendants."""

    def cpu_s(self) -> float: ...  # noqa: D102
    def children_s(self) -> float: ...  # noqa: D102
    def pids(self) -> tuple[int, ...]: ...  # noqa: D102
    def rss_bytes(self) -> float: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class MachineUsage(Protocol):
    """Counter of the machine's CPU time."""

    def busy_s(self) -> float: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used, at nanosecond resolution.

    The clock id of another process is (~pid << 3) | CPUCLOCK_SCHED (clock_getcpuclockid(3), linux/posix-timers.h).
    """
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) / NS_PER_S


def descendant_pids(pid: int) -> list[int]:
    """Return the pids of all living descendants, over all threads of each process."""
    descendants: list[int] = []
    todo = [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                children = [int(word) for word in (thread / "children").read_bytes().split()]
                descendants += children
                todo += children
    return descendants


def is_sampler(pid: int) -> bool:
    """Return whether a process is a torchwatt sampler of any session; samplers' cost is reported separately."""
    try:
        return b"torchwatt.sensors.sampler_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class ForkDetector:
    """Detects new processes and threads by the newest id, which is the last field of /proc/loadavg."""

    def __init__(self, path: str = "/proc/loadavg") -> None:
        self._file = KernelFile(path)
        self._newest = b""

    def any(self) -> bool:
        """Return whether the newest id has changed since the last call; True if it cannot be read."""
        try:
            newest = self._file.read().rsplit(None, 1)[-1]
        except (SensorError, IndexError):
            return True
        changed, self._newest = newest != self._newest, newest
        return changed

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ProcessTree:
    """CPU time and memory of a process and its descendants, without torchwatt's samplers.

    The kernel adds the CPU time of an ended child to the parent that waits for it, however short its life. If no parent
    waits, the last value read stays in the sum, which therefore does not decrease.
    """

    def __init__(self, pid: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.pid = pid
        self._clock_ns = clock_ns
        self._alive_s: dict[int, float] = {}
        self._ended_s = 0.0  # last values of descendants that have ended
        self._initial_left_s: float | None = None  # of descendants that had ended before the first read
        self._own_s = self._all_s = 0.0
        self._memory = {pid: KernelFile(f"/proc/{pid}/statm")}
        self._stat = {pid: KernelFile(f"/proc/{pid}/stat")}
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._forks = ForkDetector()
        self._rescan_ns: int | None = None  # time of the next search for children
        self._forced_rescan_ns = 0

    def cpu_s(self) -> float:
        """Return cumulative CPU seconds, without those of children that had ended before the first read.

        Raises:
            SensorError: The process has ended (SENSOR_LOST).
        """
        self._scan()
        alive_s, left_s = {}, 0.0
        for pid, file in self._stat.items():
            try:
                alive_s[pid] = process_cpu_s(pid)
                left_s += self._read_waited_s(file)
            except (OSError, SensorError) as error:
                if pid == self.pid:
                    raise SensorError(f"process {pid}: it has ended", code="SENSOR_LOST") from error
        self._ended_s += sum(seconds for pid, seconds in self._alive_s.items() if pid not in alive_s)
        self._alive_s = alive_s
        self._initial_left_s = left_s if self._initial_left_s is None else self._initial_left_s
        self._own_s = alive_s[self.pid]
        all_s = sum(alive_s.values()) + max(left_s - self._initial_left_s, self._ended_s)
        self._all_s = max(all_s, self._all_s)  # times of ended children are rounded down to ticks of 10 ms
        return self._all_s

    def children_s(self) -> float:
        """Return the part of the last `cpu_s` that belongs to descendants."""
        return self._all_s - self._own_s

    def pids(self) -> tuple[int, ...]:
        """Return the process and its living descendants."""
        self._scan()
        return tuple(self._memory)

    def _read_waited_s(self, file: KernelFile) -> float:
        """Return the CPU seconds of descendants that a process has waited for: cutime and cstime of proc(5)."""
        words = file.read(1024).rpartition(b")")[2].split()
        return (int(words[13]) + int(words[14])) * self._tick_s

    def rss_bytes(self) -> float:
        """Return the resident bytes of all living members; shared pages count in each."""
        self._scan()
        pages = 0
        for file in self._memory.values():
            with contextlib.suppress(SensorError, ValueError, IndexError):
                pages += int(file.read().split(None, 2)[1])
        return float(pages * self._page_bytes)

    def close(self) -> None:
        """Close the files of /proc."""
        self._forks.close()
        for file in (*self._memory.values(), *self._stat.values()):
            file.close()

    def _scan(self) -> None:
        now_ns = self._clock_ns()
        if self._rescan_ns is not None and now_ns < self._rescan_ns:
            return
        self._rescan_ns = now_ns + _RESCAN_NS
        if not self._forks.any() and now_ns < self._forced_rescan_ns:
            return
        alive = (self.pid, *(p for p in descendant_pids(self.pid) if not is_sampler(p)))
        for pid in self._memory.keys() - set(alive):
            self._memory.pop(pid).close()
            self._stat.pop(pid).close()
        self._memory = {pid: self._memory.get(pid) or KernelFile(f"/proc/{pid}/statm") for pid in alive}
        self._stat = {pid: self._stat.get(pid) or KernelFile(f"/proc/{pid}/stat") for pid in alive}
        took_ns = self._clock_ns() - now_ns
        self._rescan_ns = now_ns + max(_RESCAN_NS, _RESCAN_COSTS * took_ns)
        self._forced_rescan_ns = now_ns + _RESCAN_ANYWAY_NS


class MachineCpu:
    """The busy time of all CPUs together, from the first line of /proc/stat (proc(5))."""

    def __init__(self, path: str = "/proc/stat") -> None:
        self._file = KernelFile(path)
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    def busy_s(self) -> float:
        """Return cumulative busy CPU seconds: user, nice, system, irq, softirq; not idle, iowait, steal.

        Guest time is inside user already.
        """
        try:
            _cpu, user, nice, system, _idle, _iowait, irq, softirq, _further_fields = self._file.read(256).split(
                None, 8
            )
            return (int(user) + int(nice) + int(system) + int(irq) + int(softirq)) * self._tick_s
        except ValueError as error:
            raise SensorError(f"{self._file.path}: its first line is not that of proc(5): {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_process_tree(pid: int) -> ProcessTreeUsage:
    """Return the counter of a process tree's CPU time and memory for this system."""
    return ProcessTree(pid) if _HAS_PROC else PortableProcessTree(pid)


def open_machine_cpu() -> MachineUsage:
    """Return the counter of the machine's CPU time for this system."""
    return MachineCpu() if _HAS_PROC else PortableMachineCpu()
