"""What torchwatt writes is its owner's alone, whatever the umask, and never goes through a planted link."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from stat import S_IMODE

import pytest

from tests.support.bundles import rich_report
from tests.support.fleet import write_fleet
from tests.support.ranks import record
from tests.support.reports import sample_report
from tests.support.worlds import World
from torchwatt.audit import Seal, write_bundle
from torchwatt.audit.exports import export
from torchwatt.audit.fleet import open_lake
from torchwatt.audit.fleet.ingestion import ingest
from torchwatt.audit.store import Store
from torchwatt.carbon import CarbonOptions
from torchwatt.core.errors import BundleError
from torchwatt.disk.private_files import create_file, make_private_folder, open_for_append, replace_file
from torchwatt.distributed import job_folder
from torchwatt.journal.journal_directory import JournalDirectory, journal_path
from torchwatt.kineto.join_worker import write_activities
from torchwatt.offline.repricing import reprice
from torchwatt.reports.output_files import write_html
from torchwatt.sensors.calibrations import load_calibrations, save_calibration
from torchwatt.sensors.recordings import load_recording, save_recording


@pytest.fixture(autouse=True)
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder):
    return {str(path.relative_to(folder)): S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


def assert_private(folder):
    found = modes(folder)
    assert found
    for path, mode in found.items():
        assert mode == (0o700 if (folder / path).is_dir() else 0o600), (path, oct(mode))


def test_every_file_is_private_under_an_open_umask(tmp_path):
    report = rich_report()
    bundle = write_bundle(report, tmp_path / "deep" / "audit", seal=Seal(tmp_path / "chains" / "c.jsonl"))
    write_html(report, tmp_path / "pages" / "r.html")
    store = Store(tmp_path / "store")
    store.keep(report)
    Store(tmp_path / "other").add(bundle)
    store.runs()
    reprice(bundle, CarbonOptions(intensity_g_per_kwh=50.0), scenario="x", target=tmp_path / "again")
    for to in ("codecarbon", "xlsx", "parquet"):
        export([bundle], to, tmp_path / f"out.{to}")
    save_calibration(tmp_path / "cache" / "sensors.json", "key", {"gain": 1.0})
    recording = World([50.0], [5.0], steps=3).recording()
    for name in ("r.jsonl", "r.jsonl.gz"):
        save_recording(recording, tmp_path / name)
        assert len(load_recording(tmp_path / name).series) == 1
    write_activities(tmp_path / "w.npz", [])
    assert_private(tmp_path)


def test_a_lake_and_a_store_are_private_unless_they_are_shared(tmp_path):
    write_fleet(tmp_path / "runs", range(2, 4))
    for name, shared in (("lake", False), ("shared", True)):
        ingest(open_lake(tmp_path / "in" / name, shared=shared), [tmp_path / "runs"])
    assert_private(tmp_path / "in" / "lake")
    assert modes(tmp_path / "in")["lake"] == 0o700
    assert set(modes(tmp_path / "in" / "shared").values()) == {0o777, 0o666}
    store = Store(tmp_path / "store" / "root")
    kept = store.keep(rich_report())
    JournalDirectory(journal_path(store.root, "r1"))
    assert_private(tmp_path / "store")
    os.umask(0o022)
    store.share(kept)
    found = modes(tmp_path / "store")
    assert {mode for name, mode in found.items() if ".journals" not in name} == {0o755, 0o644}
    assert {mode for name, mode in found.items() if ".journals" in name} == {0o700, 0o600}
    store.rebuild()
    assert modes(store.root)["index.sqlite"] == 0o644
    Store(tmp_path / "store" / "root").keep(replace(sample_report(), run_id="another"))
    assert sorted(set(modes(store.root).values())) == [0o600, 0o644, 0o700, 0o755]  # the next run is private again


def test_a_journal_and_a_job_are_private(tmp_path):
    JournalDirectory(tmp_path / "a" / "b" / "journal")
    job_folder.begin_rank(tmp_path / "job", record(0, 1).facts)
    assert_private(tmp_path)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_a_signature_is_private(tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    assert_private(write_bundle(rich_report(), tmp_path / "audit", seal=Seal(key=key)))


def test_a_folder_that_the_user_made_keeps_its_mode(tmp_path):
    target = tmp_path / "audit"
    target.mkdir(mode=0o755)
    write_bundle(rich_report(), target)
    assert S_IMODE(target.stat().st_mode) == 0o755
    assert set(modes(target).values()) == {0o600}
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    make_private_folder(shared / "a" / "b")
    assert modes(tmp_path)["shared"] == 0o777
    assert modes(shared) == {"a": 0o700, "a/b": 0o700}


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_bytes(b"mine")
    yield path
    assert path.read_bytes() == b"mine"


def test_a_planted_link_is_not_followed(tmp_path, victim):
    planted = tmp_path / "planted"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        create_file(planted)
    with pytest.raises(OSError, match="symbolic link"):
        open_for_append(planted)
    with pytest.raises(BundleError, match="cannot write the chain"):
        write_bundle(rich_report(), tmp_path / "audit", seal=Seal(planted))
    with pytest.raises(BundleError, match="cannot save"):
        save_recording(World([50.0], [5.0], steps=3).recording(), planted)
    with pytest.raises(BundleError, match="exists already"):
        export([write_bundle(rich_report(), tmp_path / "good")], "codecarbon", planted)


def test_a_page_replaces_a_planted_link_and_not_what_it_leads_to(tmp_path, victim):
    (tmp_path / "planted").symlink_to(victim)
    write_html(rich_report(), tmp_path / "planted")
    assert not (tmp_path / "planted").is_symlink()


def test_a_link_in_place_of_a_file_that_is_replaced_is_replaced(tmp_path, victim):
    planted = tmp_path / "sensors.json"
    victim.write_bytes(b'{"format": "torchwatt-calibrations", "version": 1, "sensors": {}}')
    planted.symlink_to(victim)
    save_calibration(planted, "key", {"gain": 1.0})
    assert not planted.is_symlink()
    assert load_calibrations(planted) == {"key": {"gain": 1.0}}
    victim.write_bytes(b"mine")


def test_a_link_in_place_of_the_index_is_replaced(tmp_path, victim):
    store = Store(tmp_path / "store")
    store.keep(rich_report())
    (store.root / "index.sqlite").unlink()
    (store.root / "index.sqlite").symlink_to(victim)
    assert len(store.runs()) == 1
    assert not (store.root / "index.sqlite").is_symlink()


def test_what_fails_leaves_the_older_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "f"
    replace_file(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("run_id", ["../../out", "a/b", "..", ""])
def test_a_run_cannot_choose_where_it_is_kept(tmp_path, run_id):
    from dataclasses import replace

    with pytest.raises(BundleError):
        Store(tmp_path / "store").keep(replace(rich_report(), run_id=run_id))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../escape", "/etc/hostname", "..", "a/b"])
def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path, name):
    bundle = write_bundle(rich_report(), tmp_path / "in" / "audit")
    (tmp_path / "escape").write_bytes(b"x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
    manifest = bundle / "MANIFEST.sha256"
    manifest.write_bytes(manifest.read_bytes() + f"{digest}  {name}\n".encode())
    with pytest.raises(BundleError, match="cannot be a file of a bundle"):
        reprice(bundle, CarbonOptions(intensity_g_per_kwh=50.0), scenario="x", target=tmp_path / "deep" / "er" / "out")


def test_a_link_in_a_bundle_shows_nothing(tmp_path):
    from torchwatt.audit import read_bundle, verify

    secret = tmp_path / "secret"
    secret.write_bytes(b"password")
    bundle = write_bundle(rich_report(), tmp_path / "audit")
    (bundle / "notes.txt").symlink_to(secret)
    kept = Store(tmp_path / "store").add(bundle)
    assert not (kept / "notes.txt").exists()
    (bundle / "event.csv").unlink()
    (bundle / "event.csv").symlink_to(secret)
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(bundle)
    told = str(verify(bundle))
    assert "FILE event.csv: is a link" in told
    assert "password" not in told
