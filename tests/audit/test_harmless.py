"""What people do to a folder without meaning anything by it raises no alarm, on fifty honest bundles."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from itertools import islice

import pytest

from tests.audit.planted import honest
from tests.support.bundles import offline_report, rich_report
from tests.support.fleet import fleet_report
from tests.support.reports import HOSTILE, bare_report, named_report
from torchwatt.audit import verify, write_bundle
from torchwatt.audit.seal import GIT_ATTRIBUTES

HONEST = 50


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Return the folders of fifty bundles of all kinds."""
    folder = tmp_path_factory.mktemp("harmless")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        made = list(honest.make_all(folder).values())
        reports = [
            rich_report(),
            offline_report(),
            bare_report(),
            named_report(*HOSTILE),
            replace(rich_report(), name="é"),
        ]
        reports += [fleet_report(number) for number in range(HONEST - len(made) - len(reports))]
        for number, report in enumerate(reports):
            made.append(write_bundle(report, folder / f"b{number}", samples=("parquet", "csv.gz")[number % 2]))
    assert len(made) == HONEST
    return made


def copied(bundle, folder):
    return shutil.copytree(bundle, folder / "copy")


def copied_without_hidden_files(bundle, folder):
    return shutil.copytree(bundle, folder / "copy", ignore=shutil.ignore_patterns(".*"))


def moved_and_renamed(bundle, folder):
    shutil.copytree(bundle, folder / "old")
    (folder / "a").mkdir()
    return (folder / "old").rename(folder / "a" / "another name")


def zipped(bundle, folder):
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in bundle.iterdir():
            file.write(path, path.name)
    with zipfile.ZipFile(folder / "a.zip") as file:
        file.extractall(folder / "out")
    return folder / "out"


def read_only(bundle, folder):
    copy = shutil.copytree(bundle, folder / "copy")
    for path in copy.iterdir():
        path.chmod(0o444)
    copy.chmod(0o555)
    return copy


def touched(bundle, folder):
    copy = shutil.copytree(bundle, folder / "copy")
    for path in copy.iterdir():
        os.utime(path, (0, 0))
    return copy


def beside_another_file(bundle, folder):
    copy = shutil.copytree(bundle, folder / "copy")
    (copy / ".DS_Store").write_bytes(b"\0")
    return copy


HANDLED = (
    copied, copied_without_hidden_files, moved_and_renamed, zipped, read_only, touched, beside_another_file,
)  # fmt: skip


def test_fifty_honest_bundles_are_consistent_however_they_were_handled(bundles, tmp_path):
    for number, bundle in enumerate(bundles):
        again = (HANDLED[(number + 3) % len(HANDLED)],) if number < len(honest.MAKERS) else ()  # one of each source
        for handle in (HANDLED[number % len(HANDLED)], *again):
            folder = tmp_path / f"{number}{handle.__name__}"
            folder.mkdir()
            found = verify(handle(bundle, folder))
            assert found.ok, f"{handle.__name__}: {found}"


def git(folder, *arguments):
    settings = ("user.name=a", "user.email=a@b", "core.autocrlf=true", "core.safecrlf=false", "commit.gpgsign=false")
    options = [part for setting in settings for part in ("-c", setting)]
    subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("no git")
    (tmp_path / "origin").mkdir()
    git(tmp_path / "origin", "init", "-q")
    return tmp_path / "origin"


def checked_out(repository):
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "runs")
    git(repository.parent, "clone", "-q", str(repository), "clone")
    return repository.parent / "clone"


def test_a_clone_with_autocrlf_is_consistent(bundles, repository):
    for bundle in bundles:
        shutil.copytree(bundle, repository / bundle.parent.name / bundle.name)
    (repository / "notes.txt").write_text("two\nlines\n")
    clone = checked_out(repository)
    assert b"\r\n" in (clone / "notes.txt").read_bytes()  # autocrlf is at work
    for number, bundle in enumerate(bundles):
        copy = clone / bundle.parent.name / bundle.name
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
            path.name: path.read_bytes() for path in bundle.iterdir()
        }
        if number < len(honest.MAKERS):  # one of each source; the others have the bytes that were verified above
            found = verify(copy)
            assert found.ok, found


def test_a_clone_of_a_bundle_without_its_attributes_names_the_cure(bundles, repository):
    for bundle in islice(bundles, 1):
        shutil.copytree(bundle, repository / "run", ignore=shutil.ignore_patterns(GIT_ATTRIBUTES))
    clone = checked_out(repository)
    found = verify(clone / "run")
    assert not found.ok
    told = [f.reason for f in found.findings if f.code == "HASH" and "MANIFEST.sha256 line" in f.reason]
    assert told
    assert all("its line ends alone were changed, as git's autocrlf does; put a file .gitattributes" in t for t in told)
    # The cure, as the message says it.
    (repository / "run" / GIT_ATTRIBUTES).write_text("* -text\n")
    git(repository, "rm", "-q", "-r", "--cached", ".")
    shutil.rmtree(clone)
    assert verify(checked_out(repository) / "run").ok
