"""Checks how many more files the process may open, so that a run leaves descriptors to the program."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

SPARE_DESCRIPTORS = 64  # with fewer free descriptors, a run opens only what it needs


def descriptors_are_scarce() -> bool:
    """Return whether the process may open fewer than SPARE more descriptors.

    False if they cannot be counted (no /proc/self/fd).
    """
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            limit != resource.RLIM_INFINITY and limit - len(list(Path("/proc/self/fd").iterdir())) < SPARE_DESCRIPTORS
        )
    except ImportError:  # Windows has no such limit
        return False
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}


class HeldDescriptor:
    """A descriptor that checks whether it still refers to the file that it was opened for.

    Args:
        fd: Open; `close` closes it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = _file_identity(fd)

    def number(self) -> int:
        """Return the descriptor.

        Raises:
            OSError: EBADF: it was closed, and may refer to another file.
        """
        if self._fd < 0 or _file_identity(self._fd) != self._file:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd

    def close(self) -> None:
        """Close the descriptor unless the program closed it; a second call does nothing."""
        with contextlib.suppress(OSError):
            os.close(self.number())
        self._fd = -1


def _file_identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
