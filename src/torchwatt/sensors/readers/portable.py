"""CPU time and memory through psutil, for systems without /proc (macOS, Windows)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from torchwatt.core.errors import SensorError
from torchwatt.core.units import NS_PER_S

_RESCAN_NS = NS_PER_S


class PortableFamily:
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
        if self._scanned_ns is None or now_ns - self._scanned_ns >= _RESCAN_NS:
            self._scanned_ns = now_ns
            with contextlib.suppress(self._psutil.Error):
                children = self._process.children(recursive=True)
                self._members = [self._process, *(child for child in children if not self._is_sampler(child))]

    def _is_sampler(self, child: object) -> bool:
        try:
            return "torchwatt.sensors.sampler_main" in " ".join(child.cmdline())  # type: ignore[attr-defined]
        except self._psutil.Error:
            return False


class PortableMachine:
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
