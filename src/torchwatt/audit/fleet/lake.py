"""Files of a lake: in a local folder, or in an object store through pyarrow.

Whether a store answers is asked in a helper process: clients of some retry for minutes, or abort.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, unquote

from torchwatt.core.errors import BundleError, ConfigError, install_command
from torchwatt.disk.path_safety import LINK, SPECIAL, folder_entries, open_folder, read_untrusted
from torchwatt.disk.private_files import FILE_MODE, FOLDER_MODE, make_private_folder
from torchwatt.helper_process import helper_command

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


PART_SUFFIX = ".parquet"
# File systems allow names of 255 bytes, including `project=`, `part-` and the suffix.
MAX_NAME = 200
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
ANSWER_S = 20.0  # a client finds its credentials and the bucket's region in that time
LONGEST = 300  # characters of what a client says; the first ones name the cause


def encode_name(name: str) -> str:
    """Percent-encode text as one part of a path, as Hive does; query engines decode it.

    Raises:
        ConfigError: It is empty, too long for a file name, or the name that query engines read as null.
    """
    if name == _HIVE_NULL:
        raise ConfigError(f"{name}: query engines read this name as a missing one: give another")
    text = quote(name, safe="", errors="surrogatepass")
    if not 0 < len(text) <= MAX_NAME:
        raise ConfigError(f"{name[:40]!r}: a name in the lake has 1 to {MAX_NAME} characters, percent-encoded")
    return text


def decode_name(text: str) -> str:
    """Decode the result of `encoded`."""
    return unquote(text, errors="surrogatepass")


def part_path(table: str, project: str, started_at: datetime, run_id: str) -> str:
    """Return the path of the part of a table with the rows of a run, relative to the lake; the date is in UTC."""
    day = f"{started_at.astimezone(UTC):%Y-%m-%d}"
    return f"{table}/project={encode_name(project)}/date={day}/part-{encode_name(run_id)}{PART_SUFFIX}"


def run_of_path(path: str) -> tuple[str, str]:
    """Return the project and the run id of the path of a part."""
    _, project, _, name = path.split("/")
    return decode_name(project.removeprefix("project=")), decode_name(
        name.removeprefix("part-").removesuffix(PART_SUFFIX)
    )


MARKER = "torchwatt-lake.json"
MOST_PART_BYTES = 1 << 28  # of one run's rows of one table
_LEVELS = (("project=", ""), ("date=", ""), ("part-", PART_SUFFIX))
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
_MARK = json.dumps({"format": "torchwatt-lake", "version": 3}) + "\n"


class LakeFiles(Protocol):
    """File operations that a lake needs; paths are relative to the lake."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None if it does not exist."""

    def write(self, path: str, content: bytes, *, replace: bool) -> bool:
        """Write a file atomically; return False if it exists and `replace` is false."""

    def parts(self, table: str) -> list[str]:
        """Return the paths of a table's parts."""

    def empty(self) -> bool:
        """Return whether the folder is empty or missing."""


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """A local folder: private to its owner, or with the modes of the umask if `shared`."""

    root: Path
    shared: bool = False

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None if it does not exist."""
        try:
            return read_untrusted(self.root / path, MOST_PART_BYTES, self.root)
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes, *, replace: bool) -> bool:
        """Write a temporary file and rename it; without `replace`, link it, so that one of several writers succeeds.

        Raises:
            OSError: It cannot be written, or a folder of its path is a link.
        """
        target, hidden = self.root / path, f".{token_hex(8)}.part"
        with self._folder(target.parent) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(hidden, flags, 0o666 if self.shared else FILE_MODE, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                if replace:
                    os.replace(hidden, target.name, src_dir_fd=folder, dst_dir_fd=folder)
                    return True
                _publish_file(hidden, target.name, folder)
            except FileExistsError:
                return False
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(hidden, dir_fd=folder)
        return True

    @contextmanager
    def _folder(self, path: Path) -> Iterator[int]:
        """Open a folder of the lake; missing folders are created."""
        try:
            opened = open_folder(path, self.root)
        except FileNotFoundError:
            self._make(path)
            opened = open_folder(path, self.root)
        try:
            yield opened
        finally:
            os.close(opened)

    def _make(self, path: Path) -> None:
        if not self.root.exists():
            make_private_folder(self.root.parent)
        mode = 0o777 if self.shared else FOLDER_MODE
        for folder in (self.root, *(self.root.joinpath(*path.relative_to(self.root).parts[:n]) for n in (1, 2, 3))):
            folder.mkdir(mode, exist_ok=True)

    def parts(self, table: str) -> list[str]:
        """Return the paths of a table's parts.

        Raises:
            OSError: The table's folder contains a link, a pipe or a device, which query engines would follow.
        """
        return sorted(path.relative_to(self.root).as_posix() for path in self._below(self.root / table, _LEVELS))

    def _below(self, folder: Path, levels: Sequence[tuple[str, str]]) -> Iterator[Path]:
        (prefix, suffix), *deeper = levels
        try:
            entries = folder_entries(folder, self.root)
        except FileNotFoundError:
            return
        for name, kind in entries.items():
            if kind in {"link", "other"}:
                raise OSError(errno.EINVAL, LINK if kind == "link" else SPECIAL, str(folder / name))
            matches = name.startswith(prefix) and name.endswith(suffix)
            if kind == "folder" and deeper:
                paths = list(self._below(folder / name, deeper))
                yield from paths if matches else ()
            elif kind == "file" and not deeper and matches:
                yield folder / name

    def empty(self) -> bool:
        """Return whether the folder is empty or missing."""
        return not self.root.is_dir() or not folder_entries(self.root)


def _publish_file(hidden: str, name: str, folder: int) -> None:
    """Give a temporary file its final name.

    Raises:
        FileExistsError: The name exists.
    """
    try:
        os.link(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links, two writers of one run may both reach this line: their bytes are the same.
        if name in os.listdir(folder):
            raise FileExistsError(name) from error
        os.replace(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """A path in a file system of pyarrow; an object becomes visible when its stream is closed."""

    system: FileSystem
    root: str

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None if it does not exist."""
        try:
            with self.system.open_input_stream(f"{self.root}/{path}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes, *, replace: bool) -> bool:
        """Write an object. Concurrent writers of one run write the same bytes, so their order does not matter."""
        from pyarrow.fs import FileType

        target = f"{self.root}/{path}"
        if not replace and self.system.get_file_info(target).type == FileType.File:
            return False
        if self.system.type_name in {"local", "mock", "hdfs"}:  # object stores have no folders
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
        names = (path[cut:] for path in paths if path.endswith(PART_SUFFIX))
        return sorted(name for name in names if name.count("/") == 3)

    def empty(self) -> bool:
        """Return whether the folder is empty or missing."""
        from pyarrow.fs import FileSelector

        return not self.system.get_file_info(FileSelector(self.root, allow_not_found=True))


MARKER_ATTEMPTS, MARKER_WAIT_S = 10, 0.05


@dataclass(frozen=True, slots=True)
class Lake:
    """The Parquet parts of many runs, in a folder or an object store."""

    name: str  # as the user wrote it
    files: LakeFiles

    def make(self) -> None:
        """Create a lake in an empty place, unless it exists.

        Raises:
            BundleError: The place is not empty and no lake, or cannot be written.
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
        """Wait `MARKER_ATTEMPTS` x `MARKER_WAIT_S` for another writer to create the marker; return whether it did."""
        for _ in range(MARKER_ATTEMPTS):
            if self.exists():
                return True
            time.sleep(MARKER_WAIT_S)
        return False

    def exists(self) -> bool:
        """Return whether the place is a lake.

        Raises:
            BundleError: It is a lake of another version, or cannot be read.
        """
        try:
            mark = self.files.read(MARKER)
        except OSError as error:
            raise BundleError(f"cannot read the lake {self.name}: {error}") from error
        if mark is not None and mark != _MARK.encode():
            fix = "ingest its bundles into a new one"
            raise BundleError(f"{self.name}: a lake of another version, or a damaged {MARKER}: {fix}")
        return mark is not None

    def runs(self) -> dict[str, str]:
        """Return the path of each run's part of `run`, which is written last: a run without it is not in the lake.

        Raises:
            BundleError: The lake cannot be read.
        """
        return {run_of_path(path)[1]: path for path in self.parts("run")}

    def parts(self, table: str) -> list[str]:
        """Return the paths of a table's parts.

        Raises:
            BundleError: The lake cannot be read, or holds a link.
        """
        try:
            return self.files.parts(table)
        except OSError as error:
            where = error.filename or self.name
            raise BundleError(f"cannot read the lake {self.name}: {where} {error.strerror or error}") from error


def open_lake(place: str | os.PathLike[str], system: FileSystem | None = None, *, shared: bool = False) -> Lake:
    """Return the lake at a folder or address; the network is used for remote addresses only.

    Args:
        place: A folder, or an address that pyarrow knows: `s3://bucket/path`, `gs://bucket/path`, `file:///path`.
        system: A file system of pyarrow (or `PyFileSystem(FSSpecHandler(...))`) in which `place` is a path.
        shared: Files in a folder get the modes of the umask; by default they are private to the owner.

    Raises:
        ConfigError: The kind of address is unknown, nothing answers there, or pyarrow is not installed.
    """
    name = os.fspath(place)
    if system is None and "://" not in name:
        return Lake(name, LocalFiles(Path(name).absolute(), shared))
    if system is None:
        try:
            from pyarrow import ArrowException
            from pyarrow.fs import FileSystem
        except ImportError as error:
            raise ConfigError(f"a lake needs pyarrow: {install_command('pyarrow')}") from error
        if not name.startswith("file://"):
            check_reachable(name)
        try:
            system, path = FileSystem.from_uri(name)
        except (ArrowException, OSError, ValueError) as error:
            raise ConfigError(f"lake {name}: {error}") from error
        if not path.strip("/"):
            raise ConfigError(f"lake {name}: name a bucket or a folder")
        if system.type_name == "local":
            return Lake(name, LocalFiles(Path(path), shared))
        return Lake(name, StoredFiles(system, path.rstrip("/")))
    return Lake(name, StoredFiles(system, name.rstrip("/")))


def check_reachable(address: str) -> None:
    """Ask an object store for information on the path of an address, in a separate process.

    Raises:
        ConfigError: It does not answer within `ANSWER_S` seconds, or its client fails.
    """
    command = helper_command("torchwatt.audit.fleet.lake", address)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"lake {address}: no answer within {ANSWER_S:g} s; is there a network?") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"its client ended by {done.returncode}"]
        raise ConfigError(f"lake {address}: {said[-1][:LONGEST]}")


def main(arguments: Sequence[str]) -> int:
    """Ask for the path of one address; the last line of stderr is why that failed."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(arguments[0])
        system.get_file_info(path)
    except (ArrowException, OSError, ValueError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 1
    return 0
