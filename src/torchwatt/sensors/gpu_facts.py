"""Facts that a GPU's driver gives, and other users of the GPU."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.readers.gpu_users import INITIAL_PID_NS, pid_namespace
from torchwatt.sensors.readers.nvml_reader import read_text
from torchwatt.sensors.readers.sample_follower import Sample, matching_clock

MIG_NOTE = "MIG slice: the whole GPU is metered"


def read_gpu_facts(nvml: Any, handle: Any, index: int) -> tuple[tuple[str, str], ...]:
    """Return name, uuid, driver, limits and memory of a GPU, without facts that the driver does not give."""
    queries: dict[str, Callable[[], Any]] = {
        "name": lambda: read_text(nvml.nvmlDeviceGetName, handle),
        "uuid": lambda: read_text(nvml.nvmlDeviceGetUUID, handle),
        "nvml_index": lambda: index,
        "pci_bus_id": lambda: read_text(lambda: nvml.nvmlDeviceGetPciInfo(handle).busId),
        "driver": lambda: read_text(nvml.nvmlSystemGetDriverVersion),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "power_limit_default_w": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3,
        "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
    }
    facts = {"name": "NVIDIA GPU"}
    for name, query in queries.items():
        try:
            value = query()
        except (AttributeError, nvml.NVMLError):  # old bindings lack some functions
            continue
        facts[name] = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return tuple(facts.items())


def cpu_affinity(nvml: Any, handle: Any, words: int = 16) -> str:
    """Return the mask of the CPUs near a GPU in hexadecimal, equal for GPUs of one module; "" if not supported."""
    try:
        masks = [int(word) for word in nvml.nvmlDeviceGetCpuAffinity(handle, words)]
    except (AttributeError, nvml.NVMLError):
        return ""
    return f"{sum(mask << (64 * i) for i, mask in enumerate(masks)):x}"


def describe_sharing(nvml: Any, handle: Any, mig: str | None) -> tuple[bool, tuple[str, ...], str]:
    """Return whether the meter includes other users' energy, notes, and a message for an event ("" if none)."""
    if mig is not None or _mig_enabled(nvml, handle):
        return True, (MIG_NOTE,), f"{MIG_NOTE}; the energy of other slices is included and cannot be separated"
    try:
        pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except (AttributeError, nvml.NVMLError) as error:
        return False, (f"other processes unknown: {error}",), ""
    count, sure = count_other_processes(pids, os.getpid())
    if not count:
        return False, (), ""
    if not sure:
        return False, (), "one process that this container cannot see is on the GPU; it may be this one"
    users = f"{count} other process{'es' if count > 1 else ''} on the GPU at start"
    return True, (users,), f"{users}; their energy is included"


def _mig_enabled(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except (AttributeError, nvml.NVMLError):
        return False


def count_other_processes(
    pids: Collection[int], own: int, exists: Callable[[int], bool] | None = None, pid_ns: str | None = None
) -> tuple[int, bool]:
    """Return the number of pids other than `own`, and whether it is certain.

    In a container NVML may list pids of the host. This process then has another pid in the list, so that a single
    unknown pid may be this process.
    """
    exists = exists or (lambda pid: Path(f"/proc/{pid}").exists())
    other_pids = [pid for pid in pids if pid != own]
    hidden = [pid for pid in other_pids if not exists(pid)]
    if own in pids or len(hidden) != 1 or len(other_pids) > 1 or (pid_ns or pid_namespace()) == INITIAL_PID_NS:
        return len(other_pids), True
    return 1, False


MIN_RING_SAMPLES = 5
MAX_RING_GAP_NS = 50_000_000  # coarser has no advantage over the power field, published every 100 ms
RING_READ_NS = NS_PER_S
RING_TIME_SHARE = 0.01  # largest share of time spent in reads of all GPUs


@dataclass(frozen=True, slots=True)
class DriverRing:
    """A ring of samples: time between samples (whole ms) and time that it covers."""

    gap_ns: int
    depth_ns: int


def measure_ring(samples: Sequence[Sample]) -> DriverRing:
    """Measure a ring's resolution and depth.

    Raises:
        SensorError: The ring has fewer than 5 samples, an unknown clock, or gaps over 50 ms (NOT_SUPPORTED).
    """
    stamps_us = sorted({us for us, _ in samples})
    if len(stamps_us) < MIN_RING_SAMPLES:
        raise _unusable_ring(f"it holds {len(stamps_us)} samples")
    if matching_clock(stamps_us[-1]) is None:
        raise _unusable_ring("its time stamps match no known clock, or it has no new samples")
    gap_us = statistics.median(b - a for a, b in pairwise(stamps_us))
    if gap_us * 1000 > MAX_RING_GAP_NS:
        raise _unusable_ring(f"its samples are {gap_us / 1e3:.3g} ms apart")
    return DriverRing(max(round(gap_us / 1000), 1) * 1_000_000, (stamps_us[-1] - stamps_us[0]) * 1000)


def ring_period_ns(ring: DriverRing, call_s: float, devices: int) -> int:
    """Return the period for reading a ring: 1 s, longer if reads are slow, at most half of its depth.

    Args:
        ring: The ring.
        call_s: Seconds per read.
        devices: Number of GPUs to read.

    Raises:
        SensorError: Reads at that period would take more than 1 % of the time (NOT_SUPPORTED).
    """
    most_ns = ring.depth_ns // 2
    cheap_ns = math.ceil(call_s * devices / RING_TIME_SHARE * 1e3) * 1_000_000
    if cheap_ns > most_ns:
        raise _unusable_ring(
            f"a read takes {call_s * 1e3:.3g} ms, too long for a ring of {ring.depth_ns / NS_PER_S:.3g} s"
        )
    return min(max(RING_READ_NS, cheap_ns), most_ns)


def _unusable_ring(why: str) -> SensorError:
    return SensorError(why, code="NOT_SUPPORTED")
