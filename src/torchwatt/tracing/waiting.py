"""Wait for devices, so that work queued inside a block ends inside it. Loads no torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from torchwatt.disk.helper_thread import HelperThread
from torchwatt.tracing.devices.names import device_names

PATIENCE_S = 60.0  # limit for a collective that another rank does not join, or a kernel that does not end


def devices_in_use() -> tuple[int, ...]:
    """Return torch's indices of the CUDA devices that this process has initialised; initialises none."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():  # not loaded, or only partly
        return ()
    has_context = torch._C._cuda_hasPrimaryContext
    return tuple(index for index in range(torch.cuda.device_count()) if has_context(index))


def cuda_domains(meters: Mapping[str, str]) -> tuple[bool, frozenset[str]]:
    """Return whether CUDA is initialised here, and the domains of the devices on which this process has a context.

    Args:
        meters: Domain of each meter by the device's UUID, as NVML writes it ("GPU-...").
    """
    used = devices_in_use()
    torch = sys.modules.get("torch")
    started = torch is not None and hasattr(torch, "cuda") and bool(torch.cuda.is_initialized())
    names = device_names(sys.modules["torch"].cuda, meters) if used else {}
    return started, frozenset(names[f"gpu:{index}"] for index in used)


def synchronize() -> None:
    """Wait until all devices that this process uses have finished their queued work, without a time limit."""
    _synchronize(_may_be_waited_for())


def wait_for_devices(patience_s: float = PATIENCE_S) -> bool:
    """Wait until all devices that this process uses have finished their queued work; initialises no device.

    A failed device raises in the program's own next call, not here. During graph capture there is no wait.

    Args:
        patience_s: The longest wait.

    Returns:
        Whether they have finished; False after `patience_s`.
    """
    used = _may_be_waited_for()
    if not used:
        return True
    # On a separate thread: the wait is in C, where interrupts are not handled.
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
