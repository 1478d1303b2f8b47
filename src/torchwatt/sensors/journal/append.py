"""A journal file: frames are appended until the first error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from torchwatt.core.frame import Frame, Kind, decode, encode
from torchwatt.disk.held import HeldDescriptor


class AppendFile:
    """Appends frames to a journal file.

    After a failed write the incomplete frame is cut off, `fault` holds the reason, and later frames are ignored. No
    method raises OSError.

    Args:
        fd: Descriptor, open for appending; `close` closes it.
        size: Size of the file in bytes.
    """

    def __init__(self, fd: int, size: int = 0) -> None:
        self._file = HeldDescriptor(fd)
        self.size = size
        self.number = 0
        self.fault = ""
        self._dirty = False

    def add(self, kind: Kind, payload: bytes) -> bool:
        """Append a frame; return whether it was written."""
        if self.fault:
            return False
        data = memoryview(encode(kind, self.number, payload))
        done = 0
        try:
            fd = self._file.number()
            while done < len(data):
                done += os.write(fd, data[done:])
        except OSError as error:
            self._stop(error)
            return False
        self.number += 1
        self.size += done
        self._dirty = True
        return True

    def sync(self) -> bool:
        """Flush the file to the disk, so that it survives a power failure; return whether that succeeded."""
        if self._dirty and not self.fault:
            try:
                getattr(os, "fdatasync", os.fsync)(self._file.number())
            except OSError as error:
                self._stop(error)
            self._dirty = False
        return not self.fault

    def first(self, most_bytes: int = 1 << 20) -> bytes:
        """Return the payload of the first frame; empty if it cannot be read."""
        with contextlib.suppress(OSError):
            frame = next(decode(os.pread(self._file.number(), min(self.size, most_bytes), 0)), None)
            if isinstance(frame, Frame):
                return frame.payload
        return b""

    def replace(self, frames: Iterable[tuple[Kind, bytes]], folder: int, name: str) -> bool:
        """Replace this file atomically by a shorter one; return whether that succeeded.

        Args:
            frames: Frames of the new file; the iterator may append to this file meanwhile.
            folder: Descriptor of the folder.
            name: Name of the file in the folder.
        """
        replacement_name = f"{name}.new"
        try:
            replacement = AppendFile(create(replacement_name, folder))
        except OSError as error:
            self._stop(error)
            return False
        complete = all(replacement.add(kind, payload) for kind, payload in frames) and replacement.sync()
        try:
            if not complete:
                raise OSError(replacement.fault)  # noqa: TRY301  one way out
            os.replace(replacement_name, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            replacement.close()
            with contextlib.suppress(OSError):
                os.unlink(replacement_name, dir_fd=folder)
            self._stop(error)
            return False
        self._file.close()
        self._file, self.size, self.number, self._dirty = replacement._file, replacement.size, replacement.number, False
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self.fault = self.fault or "closed"

    def _stop(self, error: OSError) -> None:
        self.fault = error.strerror or str(error) or type(error).__name__
        with contextlib.suppress(OSError):  # readers also skip an incomplete frame
            os.ftruncate(self._file.number(), self.size)


def create(name: str, folder: int) -> int:
    """Create a private file in a folder and return its descriptor; follow no link.

    Raises:
        OSError: The name exists, or the file cannot be created.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=folder)
