"""A disk that is full from the k-th change on, for every k and writer: one clear error, and nothing is lost."""

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.heavy import some_of
from tests.support.reports import bare_report
from torchwatt.audit import Seal, verify, write_bundle
from torchwatt.audit.fleet import check_lake, ingest, open_lake
from torchwatt.audit.seal import MANIFEST, read_chain
from torchwatt.audit.store import Store
from torchwatt.core.errors import TorchwattError
from torchwatt.reports.output_files import write_html

FIRST, SECOND, THIRD = (bare_report(run_id=run_id) for run_id in ("first", "second", "third"))
MOST_CHANGES = 120


class FullDisk:
    """Refuses changes of files below a folder from the `first` on; those of names too if `renames`."""

    def __init__(self, root: Path, first: int, *, renames: bool) -> None:
        self.root, self.first, self.renames, self.changes = str(root), first, renames, 0

    def refuse(self, path: object) -> None:
        where = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else str(path)
        if where.startswith(self.root):
            self.changes += 1
            if self.changes >= self.first:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    @contextmanager
    def full(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("mkdir", "write", "fsync", *(("rename", "replace", "link") if self.renames else ())):
                patch.setattr(os, name, self._refusing(getattr(os, name), name))
            patch.setattr(os, "open", self._opening(os.open))
            yield

    def _refusing(self, real: Callable, name: str) -> Callable:
        def call(path, *args, **more):
            folder = more.get("src_dir_fd", more.get("dir_fd"))
            self.refuse(folder if folder is not None and name != "fsync" else path)
            return real(path, *args, **more)

        return call

    def _opening(self, real: Callable) -> Callable:
        def call(path, flags, *args, **more):
            folder = more.get("dir_fd")
            if flags & os.O_CREAT and (folder is not None or not Path(path).exists()):
                self.refuse(folder if folder is not None else path)
            return real(path, flags, *args, **more)

        return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing(folder: Path) -> None:
    pass


def as_before(folder: Path, before: dict[str, bytes]) -> None:
    assert contents(folder) == before


@dataclass(frozen=True)
class Writer:
    """What is there before, what is written, and what must hold after an error."""

    before: Callable[[Path], object]
    write: Callable[[Path], object]
    after: Callable[[Path, dict[str, bytes]], object] = as_before


def chain_holds(folder: Path, before: dict[str, bytes]) -> None:
    as_before(folder, before)
    write_bundle(THIRD, folder / "third", seal=Seal(chain=folder / "chain.jsonl"))
    assert verify(folder / "third", chain=folder / "chain.jsonl").ok
    assert all(link.holds for link in read_chain(folder / "chain.jsonl"))


def store_holds(folder: Path, before: dict[str, bytes]) -> None:
    store = Store(folder / "store")
    assert [run.run_id for run in store.runs()] == ["first"]
    store.keep(SECOND)
    assert {run.run_id for run in store.runs()} == {"first", "second"}


def write_lake(folder: Path, name: str) -> None:
    result = ingest(open_lake(folder / "lake"), [folder / name], jobs=1)
    if result.refused:
        raise TorchwattError(str(result.refused[0]))


def two_bundles(folder: Path) -> None:
    write_bundle(FIRST, folder / "first")
    write_bundle(SECOND, folder / "second")
    write_lake(folder, "first")


def lake_holds(folder: Path, before: dict[str, bytes]) -> None:
    now = contents(folder)
    assert before.items() <= now.items()
    assert not [name for name in now if name.endswith(".part")]
    write_lake(folder, "second")
    assert check_lake(open_lake(folder / "lake")) == ()


REPLACED = "bundle in place of an older one"
WRITERS = {
    "bundle": Writer(nothing, lambda folder: write_bundle(FIRST, folder / "b")),
    REPLACED: Writer(
        lambda folder: write_bundle(FIRST, folder / "b"),
        lambda folder: write_bundle(SECOND, folder / "b", overwrite=True),
    ),
    "bundle of a chain": Writer(
        lambda folder: write_bundle(FIRST, folder / "b", seal=Seal(chain=folder / "chain.jsonl")),
        lambda folder: write_bundle(SECOND, folder / "c", seal=Seal(chain=folder / "chain.jsonl")),
        chain_holds,
    ),
    "run of a store": Writer(
        lambda folder: Store(folder / "store").keep(FIRST),
        lambda folder: Store(folder / "store").keep(SECOND),
        store_holds,
    ),
    "page": Writer(
        lambda folder: write_html(FIRST, folder / "page.html"), lambda folder: write_html(SECOND, folder / "page.html")
    ),
    "part of a lake": Writer(two_bundles, lambda folder: write_lake(folder, "second"), lake_holds),
}


NO_RENAMES = f"{REPLACED}, on a disk that cannot exchange names"


@pytest.mark.parametrize("case", some_of([*WRITERS, NO_RENAMES], 3))
def test_a_disk_that_is_full_at_any_change_costs_only_what_was_to_be_written(case, tmp_path):
    name, renames = (REPLACED, False) if case == NO_RENAMES else (case, True)
    writer = WRITERS[name]
    for first in range(1, MOST_CHANGES):
        folder = tmp_path / str(first)
        folder.mkdir()
        writer.before(folder)
        before, disk, error = contents(folder), FullDisk(folder, first, renames=renames), None
        with disk.full(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                writer.write(folder)
            except TorchwattError as raised:
                error = raised
        if disk.changes < first:
            break
        for manifest in folder.rglob(MANIFEST):
            assert verify(manifest.parent).ok
        if error is not None:
            assert os.strerror(errno.ENOSPC) in str(error)
            if "the old one is now" not in str(error):  # where not even a rename back succeeds, it is told
                writer.after(folder, before)
    else:
        pytest.fail("more changes than were tried")
    assert first > 2


def test_an_index_that_cannot_be_written_is_a_warning_and_the_run_is_kept(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    store.keep(FIRST)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "store" / "index.sqlite").unlink()
    monkeypatch.setattr("torchwatt.audit.run_index.create_file", full)
    with pytest.warns(UserWarning, match="without an index"):
        store.keep(SECOND)
    with pytest.warns(UserWarning, match="without an index"):
        assert {run.run_id for run in store.runs()} == {"first", "second"}
    assert not list((tmp_path / "store").glob(".*.new"))
