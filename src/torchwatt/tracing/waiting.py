"""Waits for devices: what the host has queued inside a block is work of that block. Loads no torch."""

from __future__ import annotations

import contextlib
import sys


def wait_for_devices() -> None:
    """Return when all devices that this process uses have done what they were given; sets up none of them.

    A device that has failed says so to the program's own next call, not here.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):  # not loaded, or only half
        return
    with contextlib.suppress(Exception):
        if torch.cuda.is_initialized():
            for index in range(torch.cuda.device_count()):
                if torch._C._cuda_hasPrimaryContext(index):
                    torch.cuda.synchronize(index)
