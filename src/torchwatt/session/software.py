"""Versions of software and facts of the machine, for the report."""

from __future__ import annotations

import os
import platform
import secrets
import time
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from torchwatt.core.version import __version__
from torchwatt.session.jobs.host import host_id
from torchwatt.session.journal.owner import started_ticks


def software() -> Mapping[str, str]:
    """Return what ran and where: versions of torchwatt, Python, torch and the system; the machine and the process."""
    facts = {
        "torchwatt": __version__,
        "python": platform.python_version(),
        "os": platform.system(),
        "kernel": platform.release(),
        "host": platform.node(),
        "machine": host_id(),
        "process": f"{host_id()}/{os.getpid()}/{started_ticks(os.getpid())}",
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
