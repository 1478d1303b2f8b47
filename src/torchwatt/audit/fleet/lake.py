"""The lake as files: a local folder, or a path in an object store through pyarrow."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Protocol

from torchwatt.audit.fleet.paths import SUFFIX, run_of
from torchwatt.core.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

MARKER = "torchwatt-lake.json"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
_MARK = json.dumps({"format": "torchwatt-lake", "version": 3}) + "\n"


class Files(Protocol):
    """What a lake needs of a file system; paths are relative to the lake."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None where there is none."""

    def write(self, path: str, content: bytes, *, replace: bool) -> bool:
        """Write a file that appears whole or not at all; return False where it is there and may not be replaced."""

    def parts(self, table: str) -> list[str]:
        """Return the paths of a table's parts."""

    def empty(self) -> bool:
        """Return whether nothing is there."""


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """A folder."""

    root: Path

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None where there is none."""
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes, *, replace: bool) -> bool:
        """Write beside and rename; a hard link, which never replaces, decides between several writers."""
        target = self.root / path
        hidden = f"{target.parent}/.{token_hex(8)}.part"
        try:
            descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            if replace:
                Path(hidden).replace(target)
                return True
            _appear(hidden, target)
        except FileExistsError:
            return False
        finally:
            Path(hidden).unlink(missing_ok=True)
        return True

    def parts(self, table: str) -> list[str]:
        """Return the paths of a table's parts."""
        found = (self.root / table).glob(f"project=*/date=*/part-*{SUFFIX}")
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def empty(self) -> bool:
        """Return whether nothing is there."""
        return not self.root.is_dir() or not any(self.root.iterdir())


def _appear(hidden: str, target: Path) -> None:
    """Give a file its name where none is.

    Raises:
        FileExistsError: One is.
    """
    try:
        os.link(hidden, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links two writers of one run may both get here: their bytes are the same.
        if target.exists():
            raise FileExistsError(target) from error
        Path(hidden).rename(target)


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """A path in a file system of pyarrow; an object appears whole when its stream is closed."""

    system: FileSystem
    root: str

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None where there is none."""
        try:
            with self.system.open_input_stream(f"{self.root}/{path}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes, *, replace: bool) -> bool:
        """Write an object. Two writers of one run write the same bytes, so the last one changes nothing."""
        from pyarrow.fs import FileType

        target = f"{self.root}/{path}"
        if not replace and self.system.get_file_info(target).type == FileType.File:
            return False
        if self.system.type_name in {"local", "mock", "hdfs"}:  # object stores have no folders to make
            self.system.create_dir(target.rpartition("/")[0], recursive=True)
        with self.system.open_output_stream(target) as stream:
            stream.write(content)
        return True

    def parts(self, table: str) -> list[str]:
        """Return the paths of a table's parts."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(f"{self.root}/{table}", recursive=True, allow_not_found=True)
        cut = len(self.root.strip("/")) + 1
        paths = (info.path.strip("/") for info in self.system.get_file_info(selector))
        names = (path[cut:] for path in paths if path.endswith(SUFFIX))
        return sorted(name for name in names if name.count("/") == 3)

    def empty(self) -> bool:
        """Return whether nothing is there."""
        from pyarrow.fs import FileSelector

        return not self.system.get_file_info(FileSelector(self.root, allow_not_found=True))


LOOKS, LOOK_S = 10, 0.05


@dataclass(frozen=True, slots=True)
class Lake:
    """A place for the parts of many runs."""

    name: str  # as the user wrote it
    files: Files

    def make(self) -> None:
        """Mark an empty place as a lake.

        Raises:
            BundleError: Something else is there, or it cannot be written.
        """
        try:
            if not self.exists():
                if not self.files.empty():
                    if self._is_being_made():
                        return
                    raise BundleError(f"{self.name} is not empty and no lake of torchwatt: give a new folder")
                self.files.write(MARKER, _MARK.encode(), replace=False)
        except OSError as error:
            raise BundleError(f"cannot write the lake {self.name}: {error}") from error

    def _is_being_made(self) -> bool:
        """Wait a moment for another writer that has begun and not yet marked it; return whether it has now."""
        for _ in range(LOOKS):
            if self.exists():
                return True
            time.sleep(LOOK_S)
        return False

    def exists(self) -> bool:
        """Return whether it is a lake.

        Raises:
            BundleError: It is one of another version, or cannot be read.
        """
        try:
            found = self.files.read(MARKER)
        except OSError as error:
            raise BundleError(f"cannot read the lake {self.name}: {error}") from error
        if found is not None and found != _MARK.encode():
            fix = "ingest its bundles into a new one"
            raise BundleError(f"{self.name}: a lake of another version, or a damaged {MARKER}: {fix}")
        return found is not None

    def runs(self) -> dict[str, str]:
        """Return the path of each run's part of `run`: a run is in the lake when that one is."""
        return {run_of(path)[1]: path for path in self.files.parts("run")}


def open_lake(place: str | os.PathLike[str], system: FileSystem | None = None) -> Lake:
    """Return a lake by its folder or address; opens a network connection only for an address that needs one.

    Args:
        place: A folder, or an address that pyarrow knows: `s3://bucket/path`, `gs://bucket/path`, `file:///path`.
        system: A file system of pyarrow (or `PyFileSystem(FSSpecHandler(...))`) in which `place` is a path.

    Raises:
        ConfigError: There is no such kind of address, or pyarrow is not installed.
    """
    name = os.fspath(place)
    if system is None and "://" not in name:
        return Lake(name, LocalFiles(Path(name).absolute()))
    if system is None:
        try:
            from pyarrow import ArrowException
            from pyarrow.fs import FileSystem
        except ImportError as error:
            raise ConfigError("a lake needs pyarrow: pip install 'torchwatt[fleet]'") from error
        try:
            system, path = FileSystem.from_uri(name)
        except (ArrowException, OSError, ValueError) as error:
            raise ConfigError(f"lake {name}: {error}") from error
        if not path.strip("/"):
            raise ConfigError(f"lake {name}: name a bucket or a folder")
        if system.type_name == "local":
            return Lake(name, LocalFiles(Path(path)))
        return Lake(name, StoredFiles(system, path.rstrip("/")))
    return Lake(name, StoredFiles(system, name.rstrip("/")))
