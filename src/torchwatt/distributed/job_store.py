"""Read rank and device from torch.distributed, and access the job's store; imports no module that is not loaded."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import Any


def rank_and_world_size() -> tuple[int, int] | None:
    """Return (rank, world size) where torch.distributed is initialised, without importing it."""
    dist = sys.modules.get("torch.distributed")
    try:
        if dist is None or not dist.is_available() or not dist.is_initialized():
            return None
        return int(dist.get_rank()), int(dist.get_world_size())
    except Exception:  # partly imported or torn down: there is no job
        return None


def current_device(model: Any = None) -> int | None:
    """Return this process's CUDA device: that of the model, else the current one; None before CUDA is initialised."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    try:
        for parameter in model.parameters() if hasattr(model, "parameters") else ():
            if parameter.device.type == "cuda":
                return int(parameter.device.index or 0)
            break
        return int(cuda.current_device()) if cuda is not None and cuda.is_initialized() else None
    except Exception:  # the driver does not respond: LOCAL_RANK is used instead
        return None


class JobStore:
    """The job's key-value store, on a separate connection, so that training does not wait for ours."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    def open(cls, timeout_s: float) -> JobStore | None:
        """Connect; return None without a store."""
        try:
            store = _clone(timeout_s)
        except Exception:  # the store's server is gone
            return None
        return None if store is None else cls(store)

    def clone(self) -> JobStore:
        """Return another connection, for another thread: a waiting thread blocks its connection."""
        return JobStore(self._store.clone())

    def set(self, key: str, value: bytes) -> None:
        """Set the value of a key."""
        self._store.set(key, value)

    def get(self, key: str, timeout_s: float, every_s: float = 0.02) -> bytes | None:
        """Return the value of a key, polled every `every_s`; None if it was not set within `timeout_s`.

        The store's own `wait` prints two warnings on each timeout, and cannot be interrupted.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            while not self._store.check([key]):
                if time.monotonic() >= deadline_s:
                    return None
                time.sleep(every_s)
            return bytes(self._store.get(key))
        except Exception:  # the store's server is gone: no value will be set
            return None

    def add(self, key: str) -> int:
        """Increment a counter and return the new number."""
        return int(self._store.add(key, 1))

    def drop(self, key: str) -> None:
        """Delete a key."""
        self._store.delete_key(key)


def _clone(timeout_s: float) -> Any:
    if rank_and_world_size() is None:
        return None
    from torch.distributed import distributed_c10d

    c10d: Any = distributed_c10d  # its contents differ between versions

    store = c10d._get_default_store()  # a job's store has no public name
    if hasattr(store, "clone"):
        clone = store.clone()
        clone.set_timeout(timedelta(seconds=timeout_s))
        return clone
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return c10d.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
