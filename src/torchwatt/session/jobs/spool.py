"""Reads and writes a job's folder; what is missing or unreadable is skipped and named.

DIR/<job>/rank-00003.json    identity and facts of the rank: written at the start, and again at the end
DIR/<job>/rank-00003.journal its journal, while it runs
DIR/<job>/rank-00003/        its bundle, written at the end
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from torchwatt.attribution.jobs.record import Job, RankRecord, jobs_sum
from torchwatt.audit.inside import MAX_MANIFEST_BYTES, content_of, is_file_name
from torchwatt.audit.rebuild import rebuild
from torchwatt.audit.seal import MANIFEST
from torchwatt.audit.verification.files import digest
from torchwatt.audit.writer import write_bundle
from torchwatt.core.errors import BundleError, ConfigError, TorchwattError
from torchwatt.core.job import RankFacts
from torchwatt.core.report import Report
from torchwatt.disk.path_safety import Kind, folder_entries, kind_of
from torchwatt.disk.private import private_folder
from torchwatt.session.jobs.facts_file import read_facts, write_facts
from torchwatt.session.jobs.last import recovered

JOURNAL = ".journal"
_FACTS = re.compile(r"rank-([0-9]{5,7})\.json")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def folder_of(root: Path, job: str) -> Path:
    """Return the job's folder: its name with characters replaced that are special to a file system."""
    return root / (_UNSAFE.sub("_", job).lstrip(".") or "job")


def rank_name(rank: int) -> str:
    """Return the base name of a rank's files."""
    return f"rank-{rank:05d}"


def begin(folder: Path, facts: RankFacts) -> None:
    """Make the folder and write the rank's first facts, which remain if it is killed.

    Raises:
        ConfigError: The rank is there already, or nothing can be written.
    """
    path = folder / f"{rank_name(facts.place.rank)}.json"
    if path.exists() or path.with_suffix("").exists():
        raise ConfigError(
            f"job={str(folder.parent)!r}: {folder.name} already has a rank {facts.place.rank}: "
            "give another folder, or each job another name (torchrun --rdzv-id NAME)"
        )
    try:
        private_folder(folder)
        write_facts(path, facts)
    except OSError as error:
        raise ConfigError(f"job={str(folder.parent)!r} cannot be written: {error.strerror or error}") from error


def end(folder: Path, facts: RankFacts, report: Report) -> None:
    """Write the rank's bundle and its last facts.

    Raises:
        BundleError: The bundle cannot be written.
        OSError: The facts cannot be written.
    """
    write_bundle(
        report, folder / rank_name(facts.place.rank)
    )  # not added to a chain, which contains the merged run instead
    write_facts(folder / f"{rank_name(facts.place.rank)}.json", facts)


def read_rank(path: Path, root: Path | None = None) -> RankRecord:
    """Read what one rank wrote, starting from its facts file; an incomplete bundle is reported and not used.

    No link below `root` is followed, which is the job's folder or one above it that the user named.

    Raises:
        BundleError: The facts cannot be read, so that not even the rank is known.
    """
    root = root or path.parent
    facts = read_facts(path, root)
    bundle = path.with_suffix("")
    if kind_of(bundle) is None:
        return _without_bundle(facts, bundle.with_name(f"{bundle.name}{JOURNAL}"), root)
    try:
        check_whole(bundle, root)
        report = rebuild(bundle, start_ns=facts.start_ns, start_unix_ns=facts.start_unix_ns, root=root)
    except TorchwattError as error:
        return RankRecord(facts, None, f"left a bundle that cannot be used: {error}")
    if report.run_id != facts.run_id:
        return RankRecord(facts, None, f"left the bundle of another run: {report.run_id}")
    return RankRecord(facts, report)


def _without_bundle(facts: RankFacts, journal: Path, root: Path) -> RankRecord:
    """Return the data in the journal of a rank that was killed or still runs."""
    if kind_of(journal) is None:
        return RankRecord(facts, None, "left no bundle and no journal: it was killed, or is still running")
    try:
        record = recovered(facts, journal, root)
    except TorchwattError as error:
        return RankRecord(facts, None, f"left no bundle, and a journal that cannot be used: {error}")
    if record.report is not None and record.report.run_id != facts.run_id:
        return RankRecord(facts, None, f"left the journal of another run: {record.report.run_id}")
    return record


def check_whole(bundle: Path, root: Path | None = None) -> None:
    """Compare the files with the manifest: a torn or changed file must not be used.

    Raises:
        BundleError: A file is missing or differs.
    """
    try:
        lines = content_of(bundle / MANIFEST, MAX_MANIFEST_BYTES, root).decode().splitlines()
        listed = {match[2]: match[1] for line in lines if (match := _LINE.fullmatch(line))}
        have = {name: digest(bundle / name, root) for name in listed if is_file_name(name)}
    except UnicodeDecodeError as error:
        raise BundleError(f"{bundle / MANIFEST}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise BundleError(f"cannot read {error.filename or bundle}: {error.strerror}") from error
    if not listed or have != listed:
        wrong = next((name for name in sorted(listed) if have.get(name) != listed[name]), MANIFEST)
        raise BundleError(f"{bundle / wrong} differs from its manifest")


def read_job(directory: str | os.PathLike[str]) -> Job:
    """Read a job's folder, or a folder that contains one job.

    Raises:
        BundleError: There is no job, there are several, or one folder contains ranks of two jobs.
    """
    root = Path(directory)
    folder = _job_folder(root)
    records, broken = [], {}
    for rank, path in _ranks(folder, root):
        try:
            records.append(read_rank(path, root))
        except BundleError as error:
            broken[rank] = f"left facts that cannot be read: {error}"
    if not records:
        raise BundleError(f"{folder}: no rank can be read: {next(iter(broken.values()), 'none is there')}")
    job = jobs_sum(records)
    return Job(job.name, job.world_size, job.records, {r: why for r, why in broken.items() if r not in job.records})


def _job_folder(folder: Path) -> Path:
    if next(_ranks(folder, folder), None) is not None:
        return folder
    subfolders = (folder / name for name, kind in _entries(folder, folder).items() if kind == "folder")
    job_folders = [path for path in subfolders if next(_ranks(path, folder), None) is not None]
    if len(job_folders) == 1:
        return job_folders[0]
    if not job_folders:
        raise BundleError(f"{folder} contains no job: there is no rank-00000.json in it or in its folders")
    raise BundleError(
        f"{folder} contains {len(job_folders)} jobs: name one of {', '.join(path.name for path in job_folders[:8])}"
    )


def _ranks(folder: Path, root: Path) -> Iterator[tuple[int, Path]]:
    for name, kind in _entries(folder, root).items():
        match = _FACTS.fullmatch(name)
        if match is not None and kind != "folder":
            yield int(match[1]), folder / name


def _entries(folder: Path, root: Path) -> dict[str, Kind]:
    try:
        return folder_entries(folder, root)
    except (NotADirectoryError, FileNotFoundError) as error:
        raise BundleError(f"{folder} is not a folder") from error
    except OSError as error:
        raise BundleError(f"cannot read {folder}: {error.strerror}") from error
