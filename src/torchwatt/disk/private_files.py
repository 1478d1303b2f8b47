"""Creates private files and folders: modes 0600 and 0700 whatever the umask, without following symbolic links.

Files of torchwatt contain names of models, hosts and users. To share them, change their modes, or create the folder
before the run: an existing folder keeps its mode.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from errno import EINVAL, EPERM
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, cast

from torchwatt.disk.path_safety import SPECIAL, path_kind

FILE_MODE, FOLDER_MODE = 0o600, 0o700


def create_file(path: Path) -> BinaryIO:
    """Create a file and open it for writing.

    Raises:
        FileExistsError: The path exists, even as a dangling link.
        OSError: The file cannot be created.
    """
    return _open_created(path, os.O_EXCL)


def open_for_append(path: Path) -> BinaryIO:
    """Open a file for appending; create it if it does not exist.

    Raises:
        OSError: The file cannot be opened, or is a link, a pipe or a device.
    """
    file = _open_created(path, os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(EINVAL, SPECIAL, str(path))
    return file


def _open_created(path: Path, extra_flags: int) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | extra_flags
    return cast("BinaryIO", os.fdopen(os.open(path, flags, FILE_MODE), "ab" if extra_flags & os.O_APPEND else "wb"))


def missing_folders(path: Path) -> list[Path]:
    """Return the folders to create so that a folder exists, parents first.

    Raises:
        PermissionError: One of them is directly under the root, more likely by a typing error or an unmounted volume
            than by intent.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in missing:
        if folder.is_absolute() and folder.parent == folder.parent.parent and not folder.exists():
            raise PermissionError(
                EPERM, f"{folder} does not exist, and no folder is made directly under /", str(folder)
            )
    return missing[::-1]


def make_private_folder(path: Path) -> None:
    """Create a folder and its missing parents; existing folders keep their mode.

    Raises:
        OSError: A folder cannot be created, would be directly under the root, or a file has its name.
    """
    for folder in missing_folders(path.absolute()):
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def apply_umask(paths: Iterable[Path]) -> None:
    """Set the modes of files and folders to the default of the umask.

    Raises:
        OSError: A path does not exist or belongs to another user.
    """
    os.umask(umask := os.umask(FOLDER_MODE))
    for path in paths:
        if path_kind(path) in {"file", "folder"}:
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask | (FOLDER_MODE if path.is_dir() else FILE_MODE))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, replacing an existing one atomically.

    A link of that name is replaced; its target stays unchanged.

    Raises:
        OSError: The file cannot be written.
    """
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        with create_file(part) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
