"""Transfers a rank's files through the job's store, in pieces, with a checksum of the whole."""

from __future__ import annotations

import io
import json
import time
import zipfile
from hashlib import sha256
from pathlib import Path, PurePosixPath

from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import folder_entries, path_kind, read_untrusted
from torchwatt.disk.private_files import make_private_folder, replace_file
from torchwatt.distributed.clock_offsets import KeyValueStore

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
