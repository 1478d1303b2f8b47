"""Facts that a GPU's driver gives, and other users of the GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torchwatt.sensors.readers.nvml import text_of
from torchwatt.sensors.readers.users import INITIAL_PID_NS, pid_namespace

MIG_NOTE = "MIG slice: the whole GPU is metered"


def gpu_facts(nvml: Any, handle: Any, index: int) -> tuple[tuple[str, str], ...]:
    """Return name, uuid, driver, limits and memory of a GPU, without facts that the driver does not give."""
    queries: dict[str, Callable[[], Any]] = {
        "name": lambda: text_of(nvml.nvmlDeviceGetName, handle),
        "uuid": lambda: text_of(nvml.nvmlDeviceGetUUID, handle),
        "nvml_index": lambda: index,
        "pci_bus_id": lambda: text_of(lambda: nvml.nvmlDeviceGetPciInfo(handle).busId),
        "driver": lambda: text_of(nvml.nvmlSystemGetDriverVersion),
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


def sharing(nvml: Any, handle: Any, mig: str | None) -> tuple[bool, tuple[str, ...], str]:
    """Return whether the meter includes other users' energy, notes, and a message for an event ("" if none)."""
    if mig is not None or _mig_enabled(nvml, handle):
        return True, (MIG_NOTE,), f"{MIG_NOTE}; the energy of other slices is included and cannot be separated"
    try:
        pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except (AttributeError, nvml.NVMLError) as error:
        return False, (f"other processes unknown: {error}",), ""
    count, sure = other_processes(pids, os.getpid())
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


def other_processes(
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
