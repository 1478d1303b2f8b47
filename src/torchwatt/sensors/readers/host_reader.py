"""Reads the CPU times of the process and the models of CPU and RAM together, with shared reads of /proc."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.readers.gpu_users import has_cuda_library
from torchwatt.sensors.readers.process_tree import MachineUsage, ProcessTreeUsage, open_machine_cpu, open_process_tree


class ProcessReader:
    """Reads the gauges of `process`. Spec: `pid`.

    `process_cpu`, `children_cpu` (as of the last `process_cpu`) and `busy_cpu` are cumulative CPU seconds;
    `cuda_library` is a bit mask of where CUDA's driver library has been loaded so far: 1 the process, 2 a descendant.
    """

    def __init__(
        self, spec: Mapping[str, Any], kin: ProcessTreeUsage | None = None, work: MachineUsage | None = None
    ) -> None:
        self._family = kin or open_process_tree(int(spec["pid"]))
        self._machine = work or open_machine_cpu()
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


# Share of nameplate power at 0, 10, 50 and 100 % load. Teads engineering, "Building an AWS EC2 Carbon Emissions
# Dataset", 2021; also used by the Impact Framework, whose docs say that it does not generalise well.
LOAD_CURVE = ((0.0, 0.12), (0.1, 0.32), (0.5, 0.75), (1.0, 1.02))
# 3 W per 8 GB, the constant of codecarbon's older versions.
RAM_W_PER_GB = 0.375
_MIN_INTERVAL_NS = 20_000_000  # /proc/stat has a resolution of 10 ms


def machine_power_w(load: float, nameplate_w: float) -> float:
    """Return the watts of the CPUs at a load of 0 to 1, linear between the points of CURVE."""
    load = min(max(load, 0.0), 1.0)
    for (u0, f0), (u1, f1) in pairwise(LOAD_CURVE):
        if load <= u1:
            return nameplate_w * (f0 + (f1 - f0) * (load - u0) / (u1 - u0))
    return nameplate_w * LOAD_CURVE[-1][1]


def process_power_w(
    *, process_s: float, busy_s: float, interval_s: float, cpus: int, nameplate_w: float
) -> tuple[float, float]:
    """Return one process's watts and the machine's load over an interval.

    The share is P(load) x process CPU seconds / busy CPU seconds, so that the shares of all processes add up to P(load)
    and an idle process gets 0 W. Busy time has a resolution of 10 ms and may lag behind the process's clock: at least
    the process's CPU seconds are taken.
    """
    busy_s = max(busy_s, process_s)
    load = min(busy_s / (interval_s * cpus), 1.0)
    share = process_s / busy_s if busy_s > 0 else 0.0
    return machine_power_w(load, nameplate_w) * share, load


class ModelledReader:
    """Reads modelled watts and their inputs.

    Spec: `pid`, `nameplate_w`, `cpus`. Reading `cpu/power` updates the two other CPU values; the power is the mean
    since the previous read. Reading `ram/power` updates `ram/rss`.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        *,
        kin: ProcessTreeUsage | None = None,
        work: MachineUsage | None = None,
    ) -> None:
        self._nameplate_w = float(spec["nameplate_w"])
        self._cpus = int(spec["cpus"])
        self._clock_ns = clock_ns
        self._family = kin or open_process_tree(int(spec["pid"]))
        self._machine = work or open_machine_cpu()
        self._previous: tuple[int, float, float] | None = None
        self._load = self._power_w = self._rss = math.nan

    def read(self, key: str) -> float:
        """Return watts, a load of 0 to 1, CPU seconds or bytes, depending on the key."""
        if key == "cpu/power":
            return self._read_power()
        if key == "cpu/utilization":
            return self._load
        if key == "cpu/process_cpu":
            return self._previous[1] if self._previous else math.nan
        if key == "ram/power" or math.isnan(self._rss):
            self._rss = self._family.rss_bytes()
        return self._rss if key == "ram/rss" else self._rss / 1e9 * RAM_W_PER_GB

    def _read_power(self) -> float:
        sample = (self._clock_ns(), self._family.cpu_s(), self._machine.busy_s())
        if self._previous is None:
            self._previous = sample
            return math.nan
        interval_ns = sample[0] - self._previous[0]
        if interval_ns < _MIN_INTERVAL_NS:  # shorter than the resolution of /proc/stat: the next read covers it
            return math.nan
        self._power_w, self._load = process_power_w(
            process_s=sample[1] - self._previous[1],
            busy_s=sample[2] - self._previous[2],
            interval_s=interval_ns / NS_PER_S,
            cpus=self._cpus,
            nameplate_w=self._nameplate_w,
        )
        self._previous = sample
        return self._power_w

    def close(self) -> None:
        """Close the files of /proc."""
        self._family.close()
        self._machine.close()


# Reading /proc/stat takes 10 us with 2 CPUs and a millisecond with hundreds; its resolution is 10 ms.
_CACHE_NS = 1_000_000


class CachedMachineCpu:
    """The machine's busy time; reads within a millisecond share one value."""

    def __init__(self, source: MachineUsage, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._source = source
        self._clock_ns = clock_ns
        self._read_ns: int | None = None
        self._busy_s = 0.0

    def busy_s(self) -> float:
        """Return cumulative busy CPU seconds, at most a millisecond old."""
        now_ns = self._clock_ns()
        if self._read_ns is None or now_ns - self._read_ns > _CACHE_NS:
            self._busy_s, self._read_ns = self._source.busy_s(), now_ns
        return self._busy_s

    def close(self) -> None:
        """Close the counter."""
        self._source.close()


class HostReader:
    """Reads the channels of a `process` and a `modelled` spec (`spec["parts"]`) of one process with shared reads."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        parts = {part["kind"]: part for part in spec["parts"]}
        kin, work = open_process_tree(int(parts["process"]["pid"])), CachedMachineCpu(open_machine_cpu())
        self._process = ProcessReader(parts["process"], kin, work)
        self._modelled = ModelledReader(parts["modelled"], kin=kin, work=work)

    def read(self, key: str) -> float:
        """Return a channel's raw value, as `ProcessReader` or `ModelledReader`."""
        return (self._process if key.startswith("process/") else self._modelled).read(key)

    def close(self) -> None:
        """Close both readers."""
        self._process.close()
        self._modelled.close()
