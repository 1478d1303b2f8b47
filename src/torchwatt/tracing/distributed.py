"""What torch.distributed knows of this process, and the job's own store; nothing is imported that is not there."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import Any


def started() -> tuple[int, int] | None:
    """Return (rank, world size) where torch.distributed is initialised, without importing it."""
    dist = sys.modules.get("torch.distributed")
    try:
        if dist is None or not dist.is_available() or not dist.is_initialized():
            return None
        return int(dist.get_rank()), int(dist.get_world_size())
    except Exception:  # half imported, or half torn down: then there is no job to ask
        return None


def current_device(model: Any = None) -> int | None:
    """Return the CUDA device of this process: where the model is, else the current one; None before CUDA began."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    try:
        for parameter in model.parameters() if hasattr(model, "parameters") else ():
            if parameter.device.type == "cuda":
                return int(parameter.device.index or 0)
            break
        return int(cuda.current_device()) if cuda is not None and cuda.is_initialized() else None
    except Exception:  # a driver that does not answer: LOCAL_RANK will do
        return None


class StoreLink:
    """The job's key-value store, through a connection of its own: the training's never waits for ours."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    def open(cls, timeout_s: float) -> StoreLink | None:
        """Connect, or return None where there is no store to connect to."""
        try:
            found = _clone(timeout_s)
        except Exception:  # the store's server is gone
            return None
        return None if found is None else cls(found)

    def clone(self) -> StoreLink:
        """Return another connection, for another thread: a waiting one blocks its own."""
        return StoreLink(self._store.clone())

    def set(self, key: str, value: bytes) -> None:
        """Put a value."""
        self._store.set(key, value)

    def get(self, key: str, timeout_s: float, every_s: float = 0.02) -> bytes | None:
        """Return a value, looking for it as long and as often as said; None where it did not come.

        The store's own `wait` prints two warnings whenever nothing comes in time, and cannot be broken off.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            while not self._store.check([key]):
                if time.monotonic() >= deadline_s:
                    return None
                time.sleep(every_s)
            return bytes(self._store.get(key))
        except Exception:  # the store's server is gone: nothing will come
            return None

    def add(self, key: str) -> int:
        """Count one up and return the new number."""
        return int(self._store.add(key, 1))

    def drop(self, key: str) -> None:
        """Take a value away, where the store can."""
        self._store.delete_key(key)


def _clone(timeout_s: float) -> Any:
    if started() is None:
        return None
    from torch.distributed import distributed_c10d

    c10d: Any = distributed_c10d  # what it holds differs between versions

    store = c10d._get_default_store()  # there is no public name for the store of a job
    if hasattr(store, "clone"):
        found = store.clone()
        found.set_timeout(timedelta(seconds=timeout_s))
        return found
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return c10d.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
