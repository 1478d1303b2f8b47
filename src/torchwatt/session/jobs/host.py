"""Which machine this is: ranks with one name share clock, packages and memory."""

from __future__ import annotations

import os
import platform
from hashlib import sha256
from pathlib import Path

# Tells machines apart where their kernel cannot: nodes that are simulated, or kernels that hide their boot.
VARIABLE = "TORCHWATT_HOST"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """Return a name of this machine since it booted, the same in all of its containers and network namespaces.

    The monotonic clock is the kernel's: equal names mean equal clocks.
    """
    said = os.environ.get(VARIABLE)
    if said:
        return _hashed(f"said:{said}")
    try:
        return _hashed(f"boot:{BOOT_ID.read_text(encoding='ascii').strip()}")
    except (OSError, UnicodeDecodeError):
        return _hashed(f"name:{platform.node()}")


def device_identity(host: str, name: str) -> str:
    """Return what tells that two ranks met the same device: a hash, as serial numbers are nobody's business."""
    return _hashed(f"{host}:{name}")


def _hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
