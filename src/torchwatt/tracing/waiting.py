"""Waits for devices: what the host has queued inside a block is work of that block. Loads no torch."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any

PATIENCE_S = 60.0  # a collective that nobody joins, a kernel that never ends


def wait_for_devices(patience_s: float = PATIENCE_S) -> bool:
    """Return when all devices that this process uses have done what they were given; sets up none of them.

    A device that has failed says so to the program's own next call, not here. While a graph is captured nothing is
    waited for.

    Args:
        patience_s: The longest wait.

    Returns:
        Whether they are done; False when the patience has ended.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):  # not loaded, or only half
        return True
    used: list[int] = []
    with contextlib.suppress(Exception):
        if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
            has_context = torch._C._cuda_hasPrimaryContext
            used = [index for index in range(torch.cuda.device_count()) if has_context(index)]
    if not used:
        return True
    # On a thread of its own: the wait is in C, where no interrupt is heard.
    waiting = threading.Thread(target=_synchronize, args=(torch, used), name="torchwatt-wait", daemon=True)
    waiting.start()
    waiting.join(patience_s)
    return not waiting.is_alive()


def _synchronize(torch: Any, used: list[int]) -> None:
    for index in used:
        with contextlib.suppress(Exception):
            torch.cuda.synchronize(index)
