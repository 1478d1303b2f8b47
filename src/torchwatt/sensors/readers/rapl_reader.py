"""Reads powercap energy counters."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.disk.descriptors import HeldDescriptor
from torchwatt.sensors.readers.kernel_files import KernelFile, sensor_error


class RaplReader:
    """Reads `energy_uj` files named in `spec["files"]`: key -> path. Raw unit: microjoules."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._files = {key: KernelFile(path) for key, path in spec["files"].items()}

    def read(self, key: str) -> float:
        """Return the counter in microjoules."""
        file = self._files[key]
        text = file.read(32)
        if not text.strip().isdigit():  # `int` accepts signs, underscores, and digits of other scripts
            raise SensorError(f"{key}: {file.path} contains {text!r}, not a number of microjoules")
        return float(int(text))

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


# arch/*/include/generated/uapi/asm/unistd: perf_event_open
_SYSCALLS = {"x86_64": 298, "i686": 336, "i386": 336, "aarch64": 241}
# struct perf_event_attr, PERF_ATTR_SIZE_VER0 = 64 bytes (include/uapi/linux/perf_event.h): type, size, config,
# sample_period, sample_type, read_format, flag bits, wakeup_events, bp_type, config1. Counting only: all zero.
_ATTR = struct.Struct("=IIQQQQQIIQ")
_FLAG_FD_CLOEXEC = 8


def perf_event_open(pmu_type: int, config: int, cpu: int) -> int:
    """Open a system-wide counter on one CPU and return its file descriptor.

    Raises:
        SensorError: NO_PERMISSION without CAP_PERFMON or `perf_event_paranoid` <= 0; NOT_SUPPORTED elsewhere.
    """
    import ctypes  # here, because a sampler without perf events need not load them
    import platform

    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise SensorError(f"perf: no system call number known for {platform.machine()}", code="NOT_SUPPORTED")
    attr = _ATTR.pack(pmu_type, _ATTR.size, config, 0, 0, 0, 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    everyone, no_group = ctypes.c_int(-1), ctypes.c_int(-1)
    flags = ctypes.c_ulong(_FLAG_FD_CLOEXEC)
    libc.syscall.restype = ctypes.c_long
    fd = libc.syscall(ctypes.c_long(number), attr, everyone, ctypes.c_int(cpu), no_group, flags)
    if fd < 0:
        code = ctypes.get_errno()
        raise sensor_error(f"perf power event on cpu {cpu}", OSError(code, os.strerror(code), "perf_event_open"))
    return int(fd)


class PerfReader:
    """Reads `spec["events"]`: key -> [PMU type, config, CPU]. Raw unit: the event's own step, from 0 at opening."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._events: dict[str, list[int]] = dict(spec["events"])
        self._files: dict[str, HeldDescriptor] = {}

    def read(self, key: str) -> float:
        """Return the count since this reader first read the event."""
        if key not in self._files:
            self._files[key] = HeldDescriptor(perf_event_open(*self._events[key]))
        try:
            return float(struct.unpack("=Q", os.read(self._files[key].number(), 8))[0])
        except (OSError, struct.error) as error:
            raise SensorError(f"{key}: cannot read the perf event: {error}", code="SENSOR_LOST") from error

    def close(self) -> None:
        """Close the events."""
        files, self._files = self._files, {}
        for file in files.values():
            file.close()
