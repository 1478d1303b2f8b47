"""Limits on untrusted bundles: plain files only, bounded sizes, safe file and run names."""

from __future__ import annotations

import re
from pathlib import Path

from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import path_kind, read_untrusted

# Names of files in manifests and of runs, which become names of folders: they must not lead out of the folder.
FILE_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,199}")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_MANIFEST_BYTES = 1 << 24  # also of statements and descriptions; usually kilobytes
MAX_FILE_BYTES = 1 << 32  # any file of a bundle, also if read in chunks
MAX_TABLE_BYTES = 1 << 28  # a table that is read at once: a million layers; `verify` reads larger ones in chunks

# Times and energies increase from row to row, so a row takes a byte or more; a smaller file repeats one row.
ROWS_A_BYTE, FREE_ROWS = 10, 1 << 20
_FOOTER = 1 << 24  # bytes and entries
PARQUET_LIMITS = {"thrift_string_size_limit": _FOOTER, "thrift_container_size_limit": _FOOTER}


def max_rows(file_bytes: int) -> int:
    """Return the largest number of rows that is accepted in a Parquet file of `file_bytes`."""
    return max(FREE_ROWS, ROWS_A_BYTE * file_bytes)


def is_file_name(name: str) -> bool:
    """Return whether a name is allowed for a file of a bundle."""
    return FILE_NAME.fullmatch(name) is not None and name not in {".", ".."}


def checked_run_name(run_id: object, where: Path) -> str:
    """Return a run's id, checked to be a safe name of files and folders.

    Raises:
        BundleError: The id is not a valid name.
    """
    if not isinstance(run_id, str) or not RUN_NAME.fullmatch(run_id):
        raise BundleError(f"{where}: run_id {str(run_id)[:100]!r} is not a name of letters, digits, '.', '_' and '-'")
    return run_id


def is_plain_file(path: Path) -> bool:
    """Return whether a path is a plain file, not a link, which could expose files that the sender cannot read."""
    return path_kind(path) == "file"


def read_bundle_file(path: Path, largest: int = MAX_TABLE_BYTES, root: Path | None = None) -> bytes:
    """Return the bytes of a file of a bundle; `root` is the folder that the user named, see `path_safety`.

    Raises:
        BundleError: It is a link or not a file, cannot be read, or is larger than `largest` bytes.
    """
    try:
        return read_untrusted(path, largest, root)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
