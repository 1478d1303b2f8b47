"""Waits for devices: what the host has queued inside a block is work of that block. Loads no torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from torchwatt.disk.helper_thread import HelperThread
from torchwatt.tracing.devices.names import device_names

PATIENCE_S = 60.0  # a collective that nobody joins, a kernel that never ends


def devices_in_use() -> tuple[int, ...]:
    """Return torch's numbers of the CUDA devices that this process has set up; sets up none."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():  # not loaded, or only half
        return ()
    has_context = torch._C._cuda_hasPrimaryContext
    return tuple(index for index in range(torch.cuda.device_count()) if has_context(index))


def cuda_domains(meters: Mapping[str, str]) -> tuple[bool, frozenset[str]]:
    """Return whether torch has set up CUDA here, and the domains of the cards on which this process has a context.

    Args:
        meters: Domain of each meter by the device's UUID, as NVML writes it ("GPU-...").
    """
    used = devices_in_use()
    torch = sys.modules.get("torch")
    started = torch is not None and hasattr(torch, "cuda") and bool(torch.cuda.is_initialized())
    names = device_names(sys.modules["torch"].cuda, meters) if used else {}
    return started, frozenset(names[f"gpu:{index}"] for index in used)


def synchronize() -> None:
    """Return when all devices that this process uses have done what they were given, however long that takes."""
    _synchronize(_may_be_waited_for())


def wait_for_devices(patience_s: float = PATIENCE_S) -> bool:
    """Return when all devices that this process uses have done what they were given; sets up none of them.

    A device that has failed says so to the program's own next call, not here. While a graph is captured nothing is
    waited for.

    Args:
        patience_s: The longest wait.

    Returns:
        Whether they are done; False when the patience has ended.
    """
    used = _may_be_waited_for()
    if not used:
        return True
    # On a thread of its own: the wait is in C, where no interrupt is heard.
    waiting = HelperThread(partial(_synchronize, used), "torchwatt-wait")
    waiting.start()
    waiting.join(patience_s)
    return not waiting.is_alive()


def _may_be_waited_for() -> Sequence[int]:
    with contextlib.suppress(Exception):
        if (used := devices_in_use()) and not sys.modules["torch"].cuda.is_current_stream_capturing():
            return used
    return ()


def _synchronize(used: Sequence[int]) -> None:
    for index in used:
        with contextlib.suppress(Exception):
            sys.modules["torch"].cuda.synchronize(index)
