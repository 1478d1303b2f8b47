"""Every reader of a foreign folder: links, pipes, sockets, devices and huge files in it are refused, never followed."""

import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import torchwatt as tw
from tests.support.bundles import rich_report
from tests.support.fleet import write_fleet
from tests.support.ranks import record
from tests.support.reports import bare_report
from torchwatt.audit import read_bundle, run_index, verify, write_bundle
from torchwatt.audit.fleet import check_lake, open_lake, rollup
from torchwatt.audit.fleet.ingestion import ingest
from torchwatt.audit.report_loader import load_report
from torchwatt.audit.store import Store
from torchwatt.audit.verification import file_checks
from torchwatt.carbon import CarbonOptions
from torchwatt.core.errors import BundleError, TorchwattError
from torchwatt.disk import path_safety
from torchwatt.disk.path_safety import (
    folder_entries,
    open_untrusted,
    open_user_path,
    path_kind,
    read_untrusted,
    read_user_path,
)
from torchwatt.journal.journal_directory import JOURNALS_FOLDER
from torchwatt.journal.journal_reader import list_journals
from torchwatt.offline.repricing import reprice

GB = 10**9


def linked(path: Path) -> None:
    """Put a good file elsewhere and a link in its place: a reader that follows it finds nothing wrong."""
    away = path.parent.parent / f"{path.name}.elsewhere"
    path.rename(away)
    path.symlink_to(away)


def nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def bound(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def huge(path: Path) -> None:
    os.truncate(path, 20 * GB)


HOSTILE = {"link": linked, "broken link": nowhere, "pipe": pipe, "socket": bound, "folder": folder, "20 GB": huge}


@dataclass(frozen=True)
class Reader:
    """How to make a good folder, which files of it are read, and how to read it: True where it was taken as good."""

    make: Callable[[Path], Path]
    read: Callable[[Path], bool]
    files: tuple[str, ...]


def bundle(at: Path) -> Path:
    return write_bundle(rich_report(), at / "runs" / "audit")


def job(at: Path) -> Path:
    from torchwatt.distributed import job_folder

    for rank in range(2):
        one = record(rank, 2)
        job_folder.begin_rank(at / "job", one.facts)
        job_folder.end_rank(at / "job", one.facts, one.report)
    return at / "job"


def journal(at: Path) -> Path:
    with tw.profile(journal=at / "journal", powercap_root=at / "none", baseline_s=0, layers="off"):
        time.sleep(0.05)
    return at / "journal"


def lake(at: Path) -> Path:
    write_fleet(at / "runs", range(2, 3))
    assert ingest(open_lake(at / "lake"), [at / "runs"]).count("added") == 1
    return at / "lake"


def store(at: Path) -> Path:
    Store(at / "store").keep(rich_report(), "p")
    (at / "store" / "index.sqlite").unlink()
    run = next((at / "store" / "p").glob("*/"))
    run.rename(run.with_name("run"))
    return at / "store"


def ingested(runs: Path) -> bool:
    target = open_lake(runs.parent / "into")
    found = ingest(target, [runs.parent], samples=True)
    taken = found.count("added") == 1 and len(found.outcomes) == 1
    assert taken or (not target.runs() and not list((runs.parent / "into").rglob("*.parquet")))
    return taken


def kept(root: Path) -> bool:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        return len(Store(root).runs()) == 1 and not told


def repriced(path: Path) -> bool:
    reprice(path, CarbonOptions(intensity_g_per_kwh=50.0), scenario="x", target=path.parent.parent / "new")
    return True


def summed(root: Path) -> bool:
    opened = open_lake(root)
    opened.runs()
    return bool(rollup(opened, "project").num_rows)


TABLES = ("MANIFEST.sha256", "run.csv", "layer.csv", "device.csv", "event.csv")
READERS = {
    "verify": Reader(
        bundle, lambda at: verify(at).ok, (*TABLES, "sample.parquet", "statement.json", "datapackage.json")
    ),
    "read_bundle": Reader(bundle, lambda at: bool(read_bundle(at)), TABLES[1:]),
    "rebuild": Reader(bundle, lambda at: bool(load_report(at)), (*TABLES[1:], "sample.parquet")),
    "reprice": Reader(bundle, repriced, (*TABLES, "sample.parquet")),
    "ingest": Reader(bundle, ingested, (*TABLES, "sample.parquet")),
    "merge": Reader(
        job,
        lambda at: tw.merge(at).report.status == "complete",
        ("rank-00001.json", *(f"rank-00001/{name}" for name in (*TABLES, "sample.parquet"))),
    ),
    "recover": Reader(journal, lambda at: bool(tw.recover(at)), ("work.journal", "readings.journal")),
    "store": Reader(store, kept, ("p/run/run.csv", "p/run/layer.csv")),
    "rollup": Reader(lake, summed, ("torchwatt-lake.json", "run/*/*/*.parquet")),
    "fleet verify": Reader(lake, lambda at: not check_lake(open_lake(at)), ("run/*/*/*.parquet",)),
}
CASES = [(name, file, way) for name, reader in READERS.items() for file in reader.files for way in HOSTILE]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a maker of copies of the good folder of a reader."""
    made: dict[Callable, Path] = {}

    def copy(reader: Reader, at: Path) -> Path:
        if reader.make not in made:
            made[reader.make] = reader.make(tmp_path_factory.mktemp("good"))
        source = made[reader.make]
        return Path(shutil.copytree(source, at / "of" / source.name))

    return copy


@pytest.mark.parametrize("name", READERS)
def test_a_good_folder_is_taken(name, good, tmp_path):
    assert READERS[name].read(good(READERS[name], tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "way"), CASES, ids=lambda value: str(value).replace("/", ".").replace("*", "x")
)
def test_what_is_no_plain_file_of_the_folder_is_refused(name, file, way, good, tmp_path):
    reader = READERS[name]
    at = good(reader, tmp_path)
    HOSTILE[way](next(at.glob(file)))
    began = time.process_time()
    try:
        taken = reader.read(at)
    except TorchwattError as error:
        assert len(str(error)) < 600  # noqa: PT017  both ends are right
        taken = False
    assert not taken
    assert time.process_time() - began < 5


FOLDERS = [
    ("ingest", "."), ("merge", "rank-00001"), ("store", "p"), ("store", "p/run"),
    ("rollup", "run/*"), ("rollup", "run/*/*"), ("rollup", "run"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path"), FOLDERS, ids=lambda value: value.replace("/", ".").replace("*", "x"))
def test_a_folder_that_is_a_link_is_not_entered(name, path, good, tmp_path):
    reader = READERS[name]
    at = good(reader, tmp_path)
    away = tmp_path / "away"
    found = at if path == "." else next(at.glob(path))
    found.rename(away)
    found.symlink_to(away)
    try:
        taken = reader.read(at)
    except TorchwattError:
        taken = False
    assert not taken


def test_a_lake_is_not_written_through_a_link(tmp_path):
    write_fleet(tmp_path / "runs", range(2, 3))
    at, away = tmp_path / "lake", tmp_path / "away"
    open_lake(at).make()
    away.mkdir()
    (at / "layer").symlink_to(away)
    found = ingest(open_lake(at), [tmp_path / "runs"])
    assert [outcome.state for outcome in found.outcomes] == ["refused"]
    assert not list(away.iterdir())


def test_journals_behind_a_link_are_not_listed(tmp_path):
    (tmp_path / "store").mkdir()
    journal(tmp_path)
    (tmp_path / "all").mkdir()
    (tmp_path / "journal").rename(tmp_path / "all" / "r1")
    (tmp_path / "store" / JOURNALS_FOLDER).mkdir()
    (tmp_path / "store" / JOURNALS_FOLDER / "r1").symlink_to(tmp_path / "all" / "r1")
    assert list_journals(tmp_path / "store") == ()
    shutil.rmtree(tmp_path / "store" / JOURNALS_FOLDER)
    (tmp_path / "store" / JOURNALS_FOLDER).symlink_to(tmp_path / "all")
    with pytest.raises(TorchwattError, match="is a link"):
        list_journals(tmp_path / "store")


def test_a_file_is_opened_step_by_step_and_named_in_errors(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"12345")
    assert read_untrusted(tmp_path / "a" / "b" / "file", 5, tmp_path) == b"12345"
    (tmp_path / "l").symlink_to(tmp_path / "a")
    assert (
        read_untrusted(tmp_path / "l" / "b" / "file", 5, tmp_path / "l") == b"12345"
    )  # what the user named may be a link
    for bad, root, why in (
        (tmp_path / "l" / "b" / "file", tmp_path, "is a link"),
        (tmp_path / "a" / ".." / "a" / "b" / "file", tmp_path, "leads out"),
        (tmp_path / "a" / "b\0c", tmp_path, "is not a file name"),
        (tmp_path / "a" / ("x" * 300), tmp_path, "too long"),
        (tmp_path / "none" / "file", tmp_path, "No such file"),
    ):
        with pytest.raises(OSError, match=why) as told:
            read_untrusted(bad, 5, root)
        assert str(told.value.filename) in {str(bad), str(tmp_path / "l"), str(bad.parent)}
    with pytest.raises(OSError, match="has 5 bytes; at most 4 are read"):
        read_user_path(tmp_path / "l" / "b" / "file", 4)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty", "/dev/random"])
def test_a_device_is_never_opened(device, monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, *a, **k: opened.append(str(name)) or real(name, *a, **k))
    if path_kind(Path(device)) != "other":
        pytest.skip(f"no {device}")
    for way in (open_untrusted, open_user_path):
        with pytest.raises(OSError, match="plain files"):
            way(Path(device), 10)
    assert device not in opened
    assert Path(device).name not in opened


@pytest.mark.parametrize("way", ["link", "pipe"])
def test_a_file_that_is_replaced_between_look_and_opening_is_refused(way, tmp_path, monkeypatch):
    """The race: another process puts something else in the place of a file just after it was looked at."""
    (tmp_path / "in").mkdir()
    path, secret = tmp_path / "in" / "file", tmp_path / "secret"
    path.write_text("mine")
    secret.write_text("secret")
    real = path_safety._refuse

    def swap(*found):
        real(*found)
        monkeypatch.setattr(path_safety, "_refuse", real)
        path.unlink()
        os.mkfifo(path) if way == "pipe" else path.symlink_to(secret)

    monkeypatch.setattr(path_safety, "_refuse", swap)
    with pytest.raises(OSError, match=r"link|plain files"):
        read_untrusted(path, 100)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1")
    with open_untrusted(path, 10) as file:
        path.write_bytes(b"1" * 100)
        with pytest.raises(OSError, match="more than 10"):
            path_safety._read_bounded(file, path, 10)


def test_a_folder_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(path_safety, "MAX_ENTRIES", 3)
    for name in "abcd":
        (tmp_path / name).touch()
    with pytest.raises(OSError, match="more than 3 entries"):
        folder_entries(tmp_path)


def test_no_descriptor_is_left_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    for _ in range(20):
        for name in ("link", "pipe", "none"):
            with pytest.raises(OSError):
                read_untrusted(tmp_path / name, 10, tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_is_replaced_by_a_link_while_a_bundle_is_verified_is_one_error(tmp_path, monkeypatch):
    bundle = write_bundle(rich_report(), tmp_path / "bundle")
    real = file_checks.folder_entries

    def listed(folder: Path, *more: Path) -> dict:
        entries = real(folder, *more)
        (folder / "MANIFEST.sha256").replace(tmp_path / "elsewhere")
        (folder / "MANIFEST.sha256").symlink_to(tmp_path / "elsewhere")
        return entries

    monkeypatch.setattr(file_checks, "folder_entries", listed)
    monkeypatch.setattr(file_checks, "digest", lambda *_: "0" * 64)
    with pytest.raises(BundleError, match="is a link"):
        verify(bundle)


def test_an_index_that_is_no_database_is_rebuilt_and_a_broken_one_is_a_warning(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    store.keep(bare_report(run_id="first"))
    index = tmp_path / "store" / "index.sqlite"
    real = run_index.read_index
    monkeypatch.setattr(
        "torchwatt.audit.store.read_index", lambda path: (real(path), index.write_bytes(b"x" * 5000))[0]
    )
    with pytest.warns(UserWarning, match="without an index"):
        store.keep(bare_report(run_id="second"))
    monkeypatch.undo()
    assert {run.run_id for run in store.runs()} == {"first", "second"}
