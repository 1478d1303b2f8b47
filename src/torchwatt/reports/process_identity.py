"""Versions of software and facts of the machine, for the report."""

from __future__ import annotations

import os
import platform
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torchwatt.core import __version__

# Overrides the identity where the kernel's is not unique: simulated nodes, or kernels that hide the boot id.
HOST_VARIABLE = "TORCHWATT_HOST"
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """Return an identifier of this machine since its boot, the same in all of its containers and network namespaces.

    The monotonic clock is the kernel's: equal identifiers mean equal clocks.
    """
    override = os.environ.get(HOST_VARIABLE)
    if override:
        return _hash_identity(f"said:{override}")
    try:
        return _hash_identity(f"boot:{BOOT_ID_FILE.read_text(encoding='ascii').strip()}")
    except (OSError, UnicodeDecodeError):
        return _hash_identity(f"name:{platform.node()}")


def device_identity(host: str, name: str) -> str:
    """Return a hash that identifies a device across ranks without storing its serial number."""
    return _hash_identity(f"{host}:{name}")


def _hash_identity(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, identified by pid and start time (ticks since boot), as pids are reused."""

    pid: int
    started_ticks: int | None
    boot_id: str
    host: str

    def alive(self) -> bool | None:
        """Return whether the process is alive; None if unknown from here: another machine or container."""
        current = current_process()
        if (self.host, self.boot_id) != (current.host, current.boot_id):
            return False if self.host == current.host else None
        if self.started_ticks is not None:
            return process_start_ticks(self.pid) == self.started_ticks
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return None
        return True


def current_process() -> ProcessIdentity:
    """Return this process."""
    return ProcessIdentity(os.getpid(), process_start_ticks(os.getpid()), _boot_id(), platform.node())


def process_start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks; None if it has ended or /proc has no entry (proc(5), stat, field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in {b"Z", b"X"} else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def software_versions() -> Mapping[str, str]:
    """Return what ran and where: versions of torchwatt, Python, torch and the system; the machine and the process."""
    facts = {
        "torchwatt": __version__,
        "python": platform.python_version(),
        "os": platform.system(),
        "kernel": platform.release(),
        "host": platform.node(),
        "machine": host_id(),
        "process": f"{host_id()}/{os.getpid()}/{process_start_ticks(os.getpid())}",
        "cpus": str(os.cpu_count() or ""),
    }
    for package in ("torch", "nvidia-ml-py", "codecarbon", "numpy"):
        try:
            facts[package] = version(package)
        except (PackageNotFoundError, OSError):  # a missing version must not lose the report
            continue
    return facts


def new_run_id() -> str:
    """Return a UUIDv7 (RFC 9562, section 5.7): sorted by time, unique without a registry."""
    value = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | secrets.randbits(12) << 64
    return str(uuid.UUID(int=value | 0b10 << 62 | secrets.randbits(62)))
