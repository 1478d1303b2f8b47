"""The store on disk: bundles in `<store>/<project>/<run_id>/`, their chain in `<project>/chain.jsonl`."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from torchwatt.audit.bundle import read_bundle
from torchwatt.audit.bundle_limits import MAX_FILE_BYTES, checked_run_name
from torchwatt.audit.bundle_writer import write_bundle
from torchwatt.audit.run_index import (
    MonthlySum,
    StoredRun,
    add_to_index,
    index_row,
    monthly_sums,
    read_index,
    shares_of_runs,
    write_index,
)
from torchwatt.audit.seal import MANIFEST, Seal
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.report import Report
from torchwatt.disk.path_safety import folder_entries, open_untrusted, path_kind
from torchwatt.disk.private_files import FOLDER_MODE, apply_umask, create_file, make_private_folder

INDEX = "index.sqlite"
CHAIN = "chain.jsonl"
PROJECT = "default"
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def default_store() -> Path:
    """Return the default store: `TORCHWATT_STORE`, or a folder in the user's data folder (XDG)."""
    named = os.environ.get("TORCHWATT_STORE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "torchwatt" / "runs"


def project_name(project: str) -> str:
    """Return the name of a project, checked to be a safe name of a folder.

    Raises:
        ConfigError: The name is not allowed.
    """
    if not _PROJECT.fullmatch(project):
        raise ConfigError(f"project={project!r}: give a name of letters, digits, '.', '_' and '-'")
    return project


class Store:
    """A user's stored runs. No folder is created before the first run is stored."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root) if root is not None else default_store()

    def keep(self, report: Report, project: str = PROJECT) -> Path:
        """Write a run to the store and add it to its project's chain; return the bundle's folder.

        Raises:
            BundleError: The run is in the store already, or cannot be written.
            ConfigError: The project's name is not allowed.
        """
        target = self._new(project, report.run_id)
        write_bundle(report, target, seal=Seal(chain=target.parent / CHAIN))
        return self._add_to_index(target, project)

    def add(self, directory: str | os.PathLike[str], project: str = PROJECT) -> Path:
        """Copy a bundle into the store unchanged; it is not added to the chain. Return its folder.

        Raises:
            BundleError: It is no bundle, the run is in the store already, or it cannot be written.
        """
        bundle = read_bundle(directory)
        target = self._new(project, str(bundle.run["run_id"]))
        hidden = target.with_name(f".{target.name}.{token_hex(4)}.part")
        try:
            _copy_files(bundle.directory, hidden)
            hidden.rename(target)
        except OSError as error:
            shutil.rmtree(hidden, ignore_errors=True)
            raise BundleError(f"cannot write {target}: {error}") from error
        return self._add_to_index(target, project)

    def share(self, folder: Path) -> None:
        """Make a stored run readable for other users, as far as the umask allows; journals of open runs stay private.

        Raises:
            BundleError: The modes of a file cannot be changed.
        """
        project = folder.parent
        try:
            apply_umask((self.root, self.root / INDEX, project, project / CHAIN, folder))
            apply_umask(folder / name for name in folder_entries(folder, self.root))
        except OSError as error:
            raise BundleError(f"cannot share {error.filename}: {error.strerror}") from error

    def runs(self, project: str | None = None, month: str | None = None) -> tuple[StoredRun, ...]:
        """Return the stored runs in order of time; rebuild the index if it does not match the folders."""
        indexed = read_index(self.root / INDEX)
        folders = {(folder.parent.name, folder.name) for folder in self._folders()}
        if indexed is None or {(run.project, run.folder) for run in indexed} != folders:
            indexed = self.rebuild()
        return tuple(run for run in indexed if project in {None, run.project} and month in {None, run.month})

    def rebuild(self) -> tuple[StoredRun, ...]:
        """Rebuild the index from the bundles and return its runs; warn of bundles that cannot be read."""
        if not self.root.is_dir():
            return ()
        runs = tuple(sorted(self._bundles(), key=lambda run: (run.started_at, run.run_id)))
        with _warns_of_index():
            write_index(self.root / INDEX, runs)
        return runs

    def find(self, identifier: str, project: str | None = None) -> Path:
        """Return the folder of the run with an id, a prefix or suffix of its id, or a name.

        Raises:
            BundleError: No run matches, or several do.
        """
        runs = self.runs(project)
        exact = [run for run in runs if identifier in {run.run_id, run.name}]
        near = exact or [run for run in runs if run.run_id.startswith(identifier) or run.run_id.endswith(identifier)]
        if len(near) != 1:
            shown = ", ".join(f"{run.run_id} ({run.name})" for run in near[-5:])
            raise BundleError(
                f"no run {identifier!r} in {self.root}" if not near else f"{identifier!r} is several runs: {shown}"
            )
        return self.root / near[0].project / near[0].folder

    def list_unsealed(self) -> tuple[Path, ...]:
        """Return folders with tables and without a manifest, which sums do not include."""
        folders = (tables.parent for tables in sorted(self.root.glob("*/*/run.csv")))
        return tuple(
            folder for folder in folders if not folder.name.startswith(".") and not (folder / MANIFEST).is_file()
        )

    def _folders(self) -> Iterator[Path]:
        for project in _folders_in(self.root, self.root):
            for folder in _folders_in(project, self.root):
                if path_kind(folder / MANIFEST) == "file":
                    yield folder

    def _bundles(self) -> Iterator[StoredRun]:
        folder_of_run: dict[tuple[str, str], Path] = {}
        for folder in self._folders():
            try:
                run = index_row(read_bundle(folder, self.root), folder.parent.name)
            except BundleError as error:
                _warn(f"torchwatt leaves out a kept run that it cannot read: {error}")
                continue
            original = folder_of_run.setdefault((run.project, run.run_id), folder)
            if original == folder:
                yield run
            else:
                _warn(f"torchwatt counts {original} and not its copy {folder}")

    def _new(self, project: str, run_id: str) -> Path:
        checked_run_name(run_id, self.root)
        target = self.root / project_name(project) / run_id
        if target.exists():
            raise BundleError(f"run {run_id} is kept already in {target}")
        try:
            make_private_folder(target.parent)
        except OSError as error:
            raise BundleError(f"cannot write the store {self.root}: {error.strerror or error}") from error
        return target

    def _add_to_index(self, target: Path, project: str) -> Path:
        index = self.root / INDEX
        if read_index(index) is None:
            self.rebuild()
        else:
            with _warns_of_index():
                add_to_index(index, index_row(read_bundle(target, self.root), project))
        return target


@contextmanager
def _warns_of_index() -> Iterator[None]:
    """Turn a failure to write the index into a warning: the bundles are complete, and `runs` reads them anew."""
    try:
        yield
    except BundleError as error:
        _warn(f"torchwatt goes on without an index of its store: {error}")


def _copy_files(bundle: Path, target: Path) -> None:
    """Copy the plain files of a bundle; folders and links are left out."""
    target.mkdir(mode=FOLDER_MODE)
    for name, kind in folder_entries(bundle).items():
        if kind == "file":
            with open_untrusted(bundle / name, MAX_FILE_BYTES) as source, create_file(target / name) as copy:
                shutil.copyfileobj(source, copy)


def _folders_in(folder: Path, root: Path) -> Iterator[Path]:
    """Yield the folders in a folder of the store; hidden ones and links are left out."""
    try:
        entries = folder_entries(folder, root)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(f"cannot read the store {root}: {error.strerror}") from error
    yield from (folder / name for name, kind in entries.items() if kind == "folder" and not name.startswith("."))


def _warn(message: str) -> None:
    """Warn in visible characters: folders of a store may have come from others."""
    warnings.warn(escape_unprintable(message), stacklevel=3)


__all__ = [
    "PROJECT",
    "MonthlySum",
    "Store",
    "StoredRun",
    "default_store",
    "monthly_sums",
    "project_name",
    "shares_of_runs",
]
