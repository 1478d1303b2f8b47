"""Folder of a journal: private, with two files, never written over existing ones."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from torchwatt.core.errors import ConfigError
from torchwatt.disk.descriptors import HeldDescriptor
from torchwatt.disk.private_files import make_private_folder
from torchwatt.sensors.ring_journal import READINGS_FILE, JournalFile, create_journal_file

WORK_FILE = "work.journal"
JOURNALS_FOLDER = ".journals"  # no project can have this name
MAX_READINGS_BYTES = 256 << 20
MAX_WORK_BYTES = 64 << 20


class JournalDirectory:
    """The open folder of one journal, and its two files.

    Raises:
        ConfigError: The folder cannot be created, or is not empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        fds: list[int] = []
        try:
            make_private_folder(path)
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC))
            _reject_nonempty(path)
            fds += [create_journal_file(WORK_FILE, fds[0]), create_journal_file(READINGS_FILE, fds[0])]
            os.fsync(fds[0])
        except OSError as error:
            for fd in fds:
                os.close(fd)
            raise ConfigError(f"journal={str(path)!r} cannot be created: {error.strerror or error}") from error
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        folder, work, self.readings_fd = fds
        self._folder = HeldDescriptor(folder)
        self.work = JournalFile(work)
        self.readings = JournalFile(self.readings_fd)

    @property
    def folder(self) -> int:
        """Return the folder's descriptor, -1 where it was closed."""
        try:
            return self._folder.number()
        except OSError:
            return -1

    def for_sampler(self) -> tuple[int, ...]:
        """Return the arguments of the sampler process: file, folder, size limit in bytes."""
        return (self.readings_fd, self.folder, MAX_READINGS_BYTES)

    def close(self) -> None:
        """Close the files; they stay on disk."""
        self.work.close()
        self.readings.close()
        self._folder.close()

    def remove(self) -> None:
        """Remove and close the files, and the store's journal folder if it is then empty."""
        remove_journal(self.path)
        self.close()
        if self.path.parent.name == JOURNALS_FOLDER:
            with contextlib.suppress(OSError):  # not empty
                self.path.parent.rmdir()
                self.path.parent.parent.rmdir()


def _reject_nonempty(path: Path) -> None:
    if any(path.iterdir()):
        raise ConfigError(f"journal={str(path)!r} exists and is not empty: name another folder")


def remove_journal(path: Path) -> None:
    """Remove a journal; the folder stays if it contains other files."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            return
        for name in (WORK_FILE, READINGS_FILE, f"{WORK_FILE}.new", f"{READINGS_FILE}.new"):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def journal_path(store: Path, run_id: str) -> Path:
    """Return the path of a run's journal in the store."""
    return store / JOURNALS_FOLDER / run_id
