"""How files that others made are opened: plain files of bounded size, and in a foreign folder no link.

Every reader of a bundle, a job, a journal, a store, a lake or of samples opens files here. A link in such a folder
would have torchwatt read, and perhaps publish, what its sender could not read himself; a pipe would hang the reader and
a device may have side effects. What is checked is the descriptor that is then read, so that nothing can be put in the
place of a file between the check and the reading.

Refusals are OSErrors whose `strerror` says what is wrong, so that callers report them as any file that cannot be read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

Kind = Literal["file", "folder", "link", "other"]
MOST_ENTRIES = 1 << 20
_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FOLDER_FLAGS = os.O_CLOEXEC | os.O_DIRECTORY
_SEARCHED = getattr(os, "O_PATH", os.O_RDONLY)  # a process may have the right to search a folder and not to list it
LINK = "is a link, and only a folder's own files are read"
SPECIAL = "is a pipe, a socket or a device: only plain files are read"


def kind_of(path: Path) -> Kind | None:
    """Return what a path is, links not followed; None where there is nothing or where it cannot be looked at."""
    try:
        return _kind(path.lstat().st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def open_own(path: Path, most_bytes: int, root: Path | None = None) -> BinaryIO:
    """Open a file of a foreign folder.

    Args:
        path: The file.
        most_bytes: A larger file is refused before anything of it is read.
        root: The folder that the user named; it may be a link, and nothing below it may be. Default: the file's folder.

    Raises:
        OSError: There is none, it is no plain file, lies behind a link, is too large, or cannot be read.
    """
    folder = _opened_folder(path.parent, path.parent if root is None else root, _SEARCHED)
    try:
        return _opened(path, most_bytes, folder)
    finally:
        os.close(folder)


def open_named(path: Path, most_bytes: int) -> BinaryIO:
    """Open a file that the user named: a link is followed; see `open_own` for what is refused."""
    return _opened(path, most_bytes, None)


def read_own(path: Path, most_bytes: int, root: Path | None = None) -> bytes:
    """Return the content of a file of a foreign folder; see `open_own`."""
    with open_own(path, most_bytes, root) as file:
        return _content(file, path, most_bytes)


def read_named(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file that the user named; see `open_named`."""
    with open_named(path, most_bytes) as file:
        return _content(file, path, most_bytes)


def folder_entries(path: Path, root: Path | None = None) -> dict[str, Kind]:
    """Return what lies in a folder by name, in order.

    Args:
        path: The folder.
        root: The folder that the user named, as for `open_own`. Default: this one.

    Raises:
        OSError: It is no folder, lies behind a link, cannot be read, or holds more than a million entries.
    """
    descriptor = open_folder(path, path if root is None else root)
    kinds: dict[str, Kind] = {}
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                kinds[entry.name] = _kind(entry.stat(follow_symlinks=False).st_mode)
                if len(kinds) > MOST_ENTRIES:
                    raise OSError(errno.EFBIG, f"has more than {MOST_ENTRIES} entries", str(path))
    finally:
        os.close(descriptor)
    return dict(sorted(kinds.items()))


def open_folder(path: Path, root: Path) -> int:
    """Return the descriptor of a folder; see `folder_entries` for what is refused."""
    return _opened_folder(path, root, os.O_RDONLY)


def _opened(path: Path, most_bytes: int, folder: int | None) -> BinaryIO:
    """Open a file of an open folder, no link followed; without a folder, a path whose links are followed."""
    name, follow = (path, True) if folder is None else (path.name, False)
    with _naming(path):
        # Opening a device may do something: it is not opened at all.
        _refuse(os.stat(name, dir_fd=folder, follow_symlinks=follow), path, most_bytes)
        descriptor = os.open(name, _FILE_FLAGS | (0 if follow else os.O_NOFOLLOW), dir_fd=folder)
    try:
        _refuse(os.fstat(descriptor), path, most_bytes)
        return cast("BinaryIO", os.fdopen(descriptor, "rb"))
    except BaseException:
        os.close(descriptor)
        raise


def _refuse(status: os.stat_result, path: Path, most_bytes: int) -> None:
    kind = _kind(status.st_mode)
    if kind == "folder":
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if kind == "link":
        raise OSError(errno.ELOOP, LINK, str(path))
    if kind == "other":
        raise OSError(errno.EINVAL, SPECIAL, str(path))
    if status.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"has {status.st_size} bytes; at most {most_bytes} are read", str(path))


def _content(file: BinaryIO, path: Path, most_bytes: int) -> bytes:
    content = file.read(most_bytes + 1)
    if len(content) > most_bytes:  # it has grown
        raise OSError(errno.EFBIG, f"has more than {most_bytes} bytes", str(path))
    return content


def _opened_folder(folder: Path, root: Path, access: int) -> int:
    """Open a folder step by step from the root on, no link followed below it."""
    parts = folder.relative_to(root).parts if folder != root else ()
    if ".." in parts:
        raise OSError(errno.EINVAL, f"leads out of {root}", str(folder))
    with _naming(root):
        descriptor = os.open(root, _FOLDER_FLAGS | access)
    for depth, part in enumerate(parts, 1):
        above = descriptor
        try:
            with _naming(root.joinpath(*parts[:depth])):
                descriptor = os.open(part, _FOLDER_FLAGS | access | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
    return descriptor


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have errors of the system name the whole path, and say what a link in it means."""
    try:
        yield
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, "is not a file name", str(path)) from error
    except OSError as error:
        linked = error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and kind_of(path) == "link")
        raise OSError(error.errno, LINK if linked else error.strerror, str(path)) from error


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"
