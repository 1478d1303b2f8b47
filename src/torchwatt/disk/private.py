"""New files and folders are their owner's alone: 0600 and 0700 whatever the umask, and never through a planted link.

What torchwatt writes names models, hosts and users. Whoever wants to share it changes the mode of it himself, or makes
the folder first: a folder that is there already keeps its mode.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from errno import EINVAL, EPERM
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, cast

from torchwatt.disk.path_safety import SPECIAL, kind_of

FILE, FOLDER = 0o600, 0o700


def new_file(path: Path) -> BinaryIO:
    """Make a file and open it for writing.

    Raises:
        FileExistsError: Something has that name, be it a link that leads nowhere.
        OSError: It cannot be made.
    """
    return _opened(path, os.O_EXCL)


def appended_file(path: Path) -> BinaryIO:
    """Open a file for appending, made if it is not there.

    Raises:
        OSError: It cannot be opened, or is a link: what is appended must not end in another file; or it is a pipe or a
            device.
    """
    file = _opened(path, os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(EINVAL, SPECIAL, str(path))
    return file


def _opened(path: Path, extra_flags: int) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | extra_flags
    return cast("BinaryIO", os.fdopen(os.open(path, flags, FILE), "ab" if extra_flags & os.O_APPEND else "wb"))


def missing_folders(path: Path) -> list[Path]:
    """Return the folders that are to be made for a folder to be there, from above to below.

    Raises:
        PermissionError: One of them lies directly under the root, where a typing mistake or a volume that was not
            mounted is more likely than a wish: whoever wants it there makes it.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in missing:
        if folder.is_absolute() and folder.parent == folder.parent.parent and not folder.exists():
            raise PermissionError(
                EPERM, f"{folder} does not exist, and no folder is made directly under /", str(folder)
            )
    return missing[::-1]


def private_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; one that is there keeps its mode.

    Raises:
        OSError: One cannot be made, would lie directly under the root, or a file is in the way.
    """
    for folder in missing_folders(path.absolute()):
        folder.mkdir(mode=FOLDER, exist_ok=True)


def share(paths: Iterable[Path]) -> None:
    """Give files and folders the modes that the umask allows, as programs without a thought for privacy make them.

    Raises:
        OSError: One is not the caller's, or is not there.
    """
    os.umask(umask := os.umask(FOLDER))
    for path in paths:
        if kind_of(path) in {"file", "folder"}:
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask | (FOLDER if path.is_dir() else FILE))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in place of an older one: whoever looks finds the one or the other, whole.

    A link of that name is replaced, and what it led to stays as it is.

    Raises:
        OSError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        with new_file(part) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
