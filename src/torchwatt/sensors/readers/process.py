"""Reads the CPU times of the user's process and of the machine, and whether the process has loaded CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.sensors.readers.cputime import Kin, Work, family, machine
from torchwatt.sensors.readers.users import has_cuda_library


class ProcessReader:
    """Reads the gauges of `process`. Spec: `pid`.

    `process_cpu`, `children_cpu` (as of the last `process_cpu`) and `busy_cpu` are cumulative CPU seconds;
    `cuda_library` is a bit mask of where CUDA's driver library has been loaded so far: 1 the process, 2 a descendant.
    """

    def __init__(self, spec: Mapping[str, Any], kin: Kin | None = None, work: Work | None = None) -> None:
        self._family = kin or family(int(spec["pid"]))
        self._machine = work or machine()
        self._pid = int(spec["pid"])
        self._with_cuda = 0

    def read(self, key: str) -> float:
        """Return the value of one gauge.

        Raises:
            SensorError: The process has ended, or its memory maps cannot be read.
        """
        name = key.rpartition("/")[2]
        if name == "busy_cpu":
            return self._machine.busy_s()
        if name == "cuda_library":
            return self._cuda_library()
        return self._family.children_s() if name == "children_cpu" else self._family.cpu_s()

    def _cuda_library(self) -> float:
        own = self._pid
        unloaded = [pid for pid in self._family.pids() if not self._with_cuda & (1 if pid == own else 2)]
        loaded_by_pid = {pid: has_cuda_library(pid) for pid in unloaded}
        if own in loaded_by_pid and loaded_by_pid[own] is None:
            raise SensorError(f"process {own}: its memory maps cannot be read", code="NOT_SUPPORTED")
        for pid, loaded in loaded_by_pid.items():
            self._with_cuda |= (1 if pid == own else 2) if loaded else 0
        return float(self._with_cuda)

    def close(self) -> None:
        """Close the files of /proc."""
        self._family.close()
        self._machine.close()
