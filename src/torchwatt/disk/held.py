"""Long-lived descriptors in the user's process, which may close them, as daemons close all descriptors.

The next file that the program opens may then get the same number. Writing to that number or closing it would affect the
program's file.
"""

from __future__ import annotations

import contextlib
import errno
import os


class HeldDescriptor:
    """A descriptor that checks whether it still refers to the file that it was opened for.

    Args:
        fd: Open; `close` closes it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = _file_of(fd)

    def number(self) -> int:
        """Return the descriptor.

        Raises:
            OSError: EBADF: it was closed, and may refer to another file.
        """
        if self._fd < 0 or _file_of(self._fd) != self._file:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd

    def close(self) -> None:
        """Close the descriptor unless the program closed it; a second call does nothing."""
        with contextlib.suppress(OSError):
            os.close(self.number())
        self._fd = -1


def _file_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
