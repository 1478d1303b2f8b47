"""Identifies this machine: ranks on the same machine share clock, CPU packages and memory."""

from __future__ import annotations

import os
import platform
from hashlib import sha256
from pathlib import Path

# Overrides the identity where the kernel's is not unique: simulated nodes, or kernels that hide the boot id.
VARIABLE = "TORCHWATT_HOST"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """Return an identifier of this machine since its boot, the same in all of its containers and network namespaces.

    The monotonic clock is the kernel's: equal identifiers mean equal clocks.
    """
    override = os.environ.get(VARIABLE)
    if override:
        return _hashed(f"said:{override}")
    try:
        return _hashed(f"boot:{BOOT_ID.read_text(encoding='ascii').strip()}")
    except (OSError, UnicodeDecodeError):
        return _hashed(f"name:{platform.node()}")


def device_identity(host: str, name: str) -> str:
    """Return a hash that identifies a device across ranks without storing its serial number."""
    return _hashed(f"{host}:{name}")


def _hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
