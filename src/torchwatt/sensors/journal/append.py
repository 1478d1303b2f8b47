"""A file that only grows, frame by frame, and stops growing for good when the disk does not take any more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from torchwatt.core.frame import Frame, Kind, decode, encode
from torchwatt.disk.held import HeldDescriptor


class AppendFile:
    """One writer's end of a journal file.

    A frame is on the disk as a whole or, after a fault, cut off again. The first fault ends the file: `fault` then says
    why in words, and everything after it is ignored. No method raises OSError.

    Args:
        fd: Open for appending; stays the caller's until `close`.
        size: How many bytes it holds.
    """

    def __init__(self, fd: int, size: int = 0) -> None:
        self._file = HeldDescriptor(fd)
        self.size = size
        self.number = 0
        self.fault = ""
        self._dirty = False

    def add(self, kind: Kind, payload: bytes) -> bool:
        """Append a frame; whether it is there."""
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
        """Have everything on the disk, so that it outlives a loss of power; whether it is."""
        if self._dirty and not self.fault:
            try:
                getattr(os, "fdatasync", os.fsync)(self._file.number())
            except OSError as error:
                self._stop(error)
            self._dirty = False
        return not self.fault

    def first(self, most_bytes: int = 1 << 20) -> bytes:
        """Return the payload of the first frame, nothing if it cannot be read."""
        with contextlib.suppress(OSError):
            frame = next(decode(os.pread(self._file.number(), min(self.size, most_bytes), 0)), None)
            if isinstance(frame, Frame):
                return frame.payload
        return b""

    def replace(self, frames: Iterable[tuple[Kind, bytes]], folder: int, name: str) -> bool:
        """Put another, shorter file in the place of this one, whole or not at all; whether it is.

        Args:
            frames: What it holds; it may take its time, and append to this one meanwhile.
            folder: Descriptor of the folder.
            name: The file's name there.
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
        """Let go of the file."""
        self._file.close()
        self.fault = self.fault or "closed"

    def _stop(self, error: OSError) -> None:
        self.fault = error.strerror or str(error) or type(error).__name__
        with contextlib.suppress(OSError):  # half a frame: a reader passes over it as well
            os.ftruncate(self._file.number(), self.size)


def create(name: str, folder: int) -> int:
    """Make a new private file in a folder and return its descriptor; nothing that is there is touched or followed.

    Raises:
        OSError: It is there already, or cannot be made.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=folder)
