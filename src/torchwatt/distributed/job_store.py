"""The store of a torch.distributed job: rank and device, and transfer of files in pieces with a checksum of the whole.

Imports no torch module that is not loaded.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import zipfile
from datetime import timedelta
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import folder_entries, path_kind, read_untrusted
from torchwatt.disk.private_files import make_private_folder, replace_file
from torchwatt.distributed.clock_offsets import KeyValueStore


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


PIECE_BYTES = 4 << 20
MAX_TRANSFER_BYTES = 64 << 20  # a rank with more keeps its files on disk, for `torchwatt merge`
PIECE_TIMEOUT_S = 5.0


def pack_bundle(folder: Path, names: list[str]) -> bytes:
    """Return files and folders of a folder as one zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names:
            path = folder / name
            members = folder_entries(path, folder) if path_kind(path) == "folder" else {}
            for file in [path / entry for entry, kind in members.items() if kind == "file"] or [path]:
                archive.writestr(str(file.relative_to(folder)), read_untrusted(file, MAX_TRANSFER_BYTES, folder))
    return buffer.getvalue()


def unpack_bundle(content: bytes, folder: Path, name: str) -> None:
    """Extract an archive of one rank's files; only `name.json` and files in `name/` are allowed.

    Raises:
        BundleError: The archive is invalid or contains other names.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 4 * MAX_TRANSFER_BYTES:
                raise BundleError(f"the archive of {name} is too large")
            for entry in archive.infolist():
                parts = PurePosixPath(entry.filename).parts
                if parts != (f"{name}.json",) and (len(parts) != 2 or parts[0] != name or ".." in parts):
                    raise BundleError(f"the archive of {name} contains {entry.filename!r}")
                target = folder.joinpath(*parts)
                make_private_folder(target.parent)
                replace_file(target, archive.read(entry))
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise BundleError(f"the archive of {name} cannot be read: {error}") from error


def send_bundle(link: KeyValueStore, key: str, content: bytes) -> None:
    """Put an archive into the store, its label last, so that a visible label means that all pieces are there.

    Raises:
        BundleError: It is too large.
    """
    if len(content) > MAX_TRANSFER_BYTES:
        raise BundleError(f"{len(content) >> 20} MiB exceed the limit of the job's store")
    pieces = [content[at : at + PIECE_BYTES] for at in range(0, len(content), PIECE_BYTES)]
    for index, chunk in enumerate(pieces):
        link.set(f"{key}/{index}", chunk)
    label = {"pieces": len(pieces), "sha256": sha256(content).hexdigest()}
    link.set(key, json.dumps(label).encode())


def receive_bundle(link: KeyValueStore, key: str, deadline_s: float) -> bytes | None:
    """Return an archive; None if its label is not in the store by the deadline (monotonic).

    Raises:
        BundleError: A piece is missing or the checksum differs.
    """
    label = link.get(key, max(deadline_s - time.monotonic(), 0.0))
    if label is None:
        return None
    label_values = json.loads(label)
    pieces = []
    for index in range(min(int(label_values["pieces"]), MAX_TRANSFER_BYTES // PIECE_BYTES + 1)):
        chunk = link.get(f"{key}/{index}", PIECE_TIMEOUT_S)
        if chunk is None:
            raise BundleError("a part of it did not arrive")
        pieces.append(chunk)
        link.drop(f"{key}/{index}")
    content = b"".join(pieces)
    if sha256(content).hexdigest() != label_values["sha256"]:
        raise BundleError("its checksum is wrong")
    return content
