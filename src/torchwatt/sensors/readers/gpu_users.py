"""Users of a GPU, by the driver's list of processes and the descendants of the user's process. Numpy-free."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torchwatt.core.terms import DeviceUsers

# The inode of the first PID namespace (PROC_PID_INIT_INO, linux/proc_ns.h): elsewhere NVML's pids differ from ours.
INITIAL_PID_NS = "pid:[4026531836]"
MAX_ANCESTORS = 64
_LISTS = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
)
CUDA_LIBRARY_FILE = b"/libcuda.so"


def read_listed_pids(nvml: Any, handle: Any) -> set[int]:
    """Return the pids of all processes that the driver lists on a device.

    Raises:
        NVMLError: The list of compute processes cannot be read; the other two may be missing.
    """
    pids = {int(process.pid) for process in getattr(nvml, _LISTS[0])(handle)}
    for name in _LISTS[1:]:
        with contextlib.suppress(AttributeError, nvml.NVMLError):
            pids |= {int(process.pid) for process in getattr(nvml, name)(handle)}
    return pids


def classify_users(
    pids: Collection[int],
    root: int,
    *,
    parent: Callable[[int], int | None] | None = None,
    all_visible: bool | None = None,
) -> DeviceUsers:
    """Classify the users of a device by the processes that the driver lists.

    Args:
        pids: The listed pids.
        root: The user's process, or the launcher of its job: it and its descendants are "ours", and so is the calling
            process, which may be a detached sampler.
        parent: Returns the parent of a process, None if the process is not visible.
        all_visible: Whether all pids of the machine are visible; by default determined from /proc.
    """
    parent = parent or parent_pid
    if not pids:
        sure = sees_all_pids() if all_visible is None else all_visible
        return DeviceUsers.UNUSED if sure else DeviceUsers.EMPTY
    if any(pid in {root, os.getpid()} or _is_descendant(pid, root, parent) for pid in pids):
        return DeviceUsers.OURS
    return DeviceUsers.HIDDEN if any(parent(pid) is None for pid in pids) else DeviceUsers.OTHERS


def _is_descendant(pid: int, root: int, parent: Callable[[int], int | None]) -> bool:
    for _ in range(MAX_ANCESTORS):
        above = parent(pid)
        if above is None or above == root:
            return above == root
        pid = above
    return False


def parent_pid(pid: int) -> int | None:
    """Return the parent's pid; None for pid 0, or if the process or /proc is not visible."""
    if pid <= 0:
        return None
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def sees_all_pids() -> bool:
    """Return whether this process is in the machine's initial PID namespace, to which NVML's pids refer."""
    return pid_namespace() == INITIAL_PID_NS


def pid_namespace() -> str:
    """Return the name of this process's PID namespace, "" if it cannot be read."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def has_cuda_library(pid: int) -> bool | None:
    """Return whether a process has loaded CUDA's driver library, which a context needs; None if unknown."""
    try:
        return CUDA_LIBRARY_FILE in Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return None
