"""Opens files of untrusted folders: regular files of bounded size, and no symbolic links.

Every reader of a bundle, a job, a journal, a store, a lake or of samples opens files here. A link in such a folder
could make torchwatt read, and perhaps publish, a file that the sender of the folder cannot read; reading a pipe would
hang, and opening a device may have side effects. The checks apply to the descriptor that is then read, so that the file
cannot be replaced between check and read. Of gzip files, those with an excessive ratio are refused while they are read.

Refusals are OSErrors whose `strerror` is the reason, so that callers report them like other unreadable files.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Literal, TextIO, cast

PathKind = Literal["file", "folder", "link", "other"]
MAX_ENTRIES = 1 << 20
_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FOLDER_FLAGS = os.O_CLOEXEC | os.O_DIRECTORY
_SEARCH_ONLY = getattr(os, "O_PATH", os.O_RDONLY)  # a process may have the right to search a folder and not to list it
LINK = "is a link, and only a folder's own files are read"
SPECIAL = "is a pipe, a socket or a device: only plain files are read"


def path_kind(path: Path) -> PathKind | None:
    """Return the kind of a path without following links; None if it does not exist or cannot be accessed."""
    try:
        return _mode_kind(path.lstat().st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def open_untrusted(path: Path, most_bytes: int, root: Path | None = None) -> BinaryIO:
    """Open a file of an untrusted folder.

    Args:
        path: The file.
        most_bytes: Largest accepted size, checked before reading.
        root: The folder that the user named; it may be a link, but no path below it. Default: the file's folder.

    Raises:
        OSError: The file is absent, not regular, behind a link, too large or not readable.
    """
    folder = _open_folder_steps(path.parent, path.parent if root is None else root, _SEARCH_ONLY)
    try:
        return _open_checked(path, most_bytes, folder)
    finally:
        os.close(folder)


def open_user_path(path: Path, most_bytes: int) -> BinaryIO:
    """Open a file that the user named, following links; other refusals are those of `open_untrusted`."""
    return _open_checked(path, most_bytes, None)


def read_untrusted(path: Path, most_bytes: int, root: Path | None = None) -> bytes:
    """Return the content of a file of an untrusted folder; see `open_untrusted`."""
    with open_untrusted(path, most_bytes, root) as file:
        return _read_bounded(file, path, most_bytes)


def read_user_path(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file that the user named; see `open_user_path`."""
    with open_user_path(path, most_bytes) as file:
        return _read_bounded(file, path, most_bytes)


def folder_entries(path: Path, root: Path | None = None) -> dict[str, PathKind]:
    """Return the kinds of a folder's entries by name, sorted.

    Args:
        path: The folder.
        root: The folder that the user named, as for `open_untrusted`. Default: this one.

    Raises:
        OSError: It is not a folder, is behind a link, cannot be read, or has more than a million entries.
    """
    descriptor = open_folder(path, path if root is None else root)
    kinds: dict[str, PathKind] = {}
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                kinds[entry.name] = _mode_kind(entry.stat(follow_symlinks=False).st_mode)
                if len(kinds) > MAX_ENTRIES:
                    raise OSError(errno.EFBIG, f"has more than {MAX_ENTRIES} entries", str(path))
    finally:
        os.close(descriptor)
    return dict(sorted(kinds.items()))


def open_folder(path: Path, root: Path) -> int:
    """Return a descriptor of a folder, with the refusals of `folder_entries`."""
    return _open_folder_steps(path, root, os.O_RDONLY)


def _open_checked(path: Path, most_bytes: int, folder: int | None) -> BinaryIO:
    """Open a file in an open folder without following links; if `folder` is None, a path, following links."""
    name, follow = (path, True) if folder is None else (path.name, False)
    with _errors_with_path(path):
        # Opening a device may have side effects: check before opening.
        _refuse(os.stat(name, dir_fd=folder, follow_symlinks=follow), path, most_bytes)
        descriptor = os.open(name, _FILE_FLAGS | (0 if follow else os.O_NOFOLLOW), dir_fd=folder)
    try:
        _refuse(os.fstat(descriptor), path, most_bytes)
        return cast("BinaryIO", os.fdopen(descriptor, "rb"))
    except BaseException:
        os.close(descriptor)
        raise


def _refuse(status: os.stat_result, path: Path, most_bytes: int) -> None:
    kind = _mode_kind(status.st_mode)
    if kind == "folder":
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if kind == "link":
        raise OSError(errno.ELOOP, LINK, str(path))
    if kind == "other":
        raise OSError(errno.EINVAL, SPECIAL, str(path))
    if status.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"has {status.st_size} bytes; at most {most_bytes} are read", str(path))


def _read_bounded(file: BinaryIO, path: Path, most_bytes: int) -> bytes:
    content = file.read(most_bytes + 1)
    if len(content) > most_bytes:  # it has grown
        raise OSError(errno.EFBIG, f"has more than {most_bytes} bytes", str(path))
    return content


def _open_folder_steps(folder: Path, root: Path, access: int) -> int:
    """Open a folder one path component at a time, following no link below `root`."""
    parts = folder.relative_to(root).parts if folder != root else ()
    if ".." in parts:
        raise OSError(errno.EINVAL, f"leads out of {root}", str(folder))
    with _errors_with_path(root):
        descriptor = os.open(root, _FOLDER_FLAGS | access)
    for depth, part in enumerate(parts, 1):
        above = descriptor
        try:
            with _errors_with_path(root.joinpath(*parts[:depth])):
                descriptor = os.open(part, _FOLDER_FLAGS | access | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
    return descriptor


@contextmanager
def _errors_with_path(path: Path) -> Iterator[None]:
    """Re-raise errors of the system with the full path, and with `LINK` as the reason for a link."""
    try:
        yield
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, "is not a file name", str(path)) from error
    except OSError as error:
        linked = error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and path_kind(path) == "link")
        raise OSError(error.errno, LINK if linked else error.strerror, str(path)) from error


def _mode_kind(mode: int) -> PathKind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"


# Traces, curves and recordings have ratios of 10 to 30; the maximum of deflate is 1032.
MAX_RATIO = 100
UNCHECKED_BYTES = 1 << 26  # the ratio is not checked up to 64 MiB
MAX_LINE_CHARS = 1 << 24  # characters: a line of a recording has about 250,000


class _BoundedGzip(io.RawIOBase):
    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._gzip = gzip.GzipFile(fileobj=packed)
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        count = self._gzip.readinto(buffer)  # type: ignore[arg-type]  # any writable buffer
        self._bytes += count
        if self._bytes > UNCHECKED_BYTES and self._bytes > MAX_RATIO * self._packed.tell():
            raise OSError(f"it expands to more than {MAX_RATIO} times its size: no file of this kind does")
        return count


def open_bounded_gzip(packed: IO[bytes]) -> io.BufferedReader:
    """Return a reader of a gzip file's content; reading a damaged file raises `zlib.error` or `EOFError`.

    Raises:
        OSError: During reading, if the content exceeds 64 MiB and 100 times the compressed bytes read.
    """
    return io.BufferedReader(_BoundedGzip(packed), 1 << 17)


def bounded_lines(file: TextIO, longest: int = MAX_LINE_CHARS) -> Iterator[str]:
    """Yield the lines of a file.

    Raises:
        OSError: A line is longer than `longest` characters; it is not read to its end.
    """
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise OSError(f"a line is longer than {longest} characters")
        yield line
