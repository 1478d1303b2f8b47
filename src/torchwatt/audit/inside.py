"""What a bundle of anybody may hold: plain files of its own, of a size that can be read, under names that are names."""

from __future__ import annotations

import re
from pathlib import Path

from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import kind_of, read_own

# A file is named in manifests and a run becomes a folder's name: neither may lead out of the folder.
FILE_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,199}")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_MANIFEST_BYTES = 1 << 24  # also of a statement or a description: they have kilobytes
MAX_FILE_BYTES = 1 << 32  # any file of a bundle, also where it is read in pieces
MAX_TABLE_BYTES = 1 << 28  # a table that is read whole, a million layers; `verify` reads larger ones piece by piece

# Times and joules rise from row to row, so a row takes a byte and more; a file of fewer repeats one row for ever.
ROWS_A_BYTE, FREE_ROWS = 10, 1 << 20
_FOOTER = 1 << 24  # bytes and entries
PARQUET_LIMITS = {"thrift_string_size_limit": _FOOTER, "thrift_container_size_limit": _FOOTER}


def most_rows(file_bytes: int) -> int:
    """Return how many rows a Parquet file of samples of that size can honestly hold."""
    return max(FREE_ROWS, ROWS_A_BYTE * file_bytes)


def is_file_name(name: str) -> bool:
    """Return whether that is the name of a file in a bundle's folder."""
    return FILE_NAME.fullmatch(name) is not None and name not in {".", ".."}


def name_of_run(run_id: object, where: Path) -> str:
    """Return a run's id, which other files and folders are named after.

    Raises:
        BundleError: It could not be a folder's name.
    """
    if not isinstance(run_id, str) or not RUN_NAME.fullmatch(run_id):
        raise BundleError(f"{where}: run_id {str(run_id)[:100]!r} is no name of letters, digits, '.', '_' and '-'")
    return run_id


def is_own(path: Path) -> bool:
    """Return whether a path is a plain file and no link: a link would show what the sender could not read himself."""
    return kind_of(path) == "file"


def content_of(path: Path, largest: int = MAX_TABLE_BYTES, root: Path | None = None) -> bytes:
    """Read a file of a bundle whole; `root` is the folder that the user named, see `path_safety`.

    Raises:
        BundleError: It is a link or no file, cannot be read, or is larger than that.
    """
    try:
        return read_own(path, largest, root)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
