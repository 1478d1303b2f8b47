"""Reads and writes a job's folder; what is missing or unreadable is skipped and named.

DIR/<job>/rank-00003.json    identity and facts of the rank: written at the start, and again at the end
DIR/<job>/rank-00003.journal its journal, while it runs
DIR/<job>/rank-00003/        its bundle, written at the end
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torchwatt.attribution.counter_scope import MODULE_GPUS_FACT
from torchwatt.audit.bundle_limits import MAX_MANIFEST_BYTES, is_file_name, read_bundle_file
from torchwatt.audit.bundle_writer import write_bundle
from torchwatt.audit.report_loader import load_report
from torchwatt.audit.seal import MANIFEST
from torchwatt.audit.verification.file_checks import digest
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.errors import BundleError, ConfigError, TorchwattError
from torchwatt.core.job import RankFacts
from torchwatt.core.meter import Recording
from torchwatt.core.report import Report
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.disk.path_safety import PathKind, folder_entries, path_kind
from torchwatt.disk.private_files import make_private_folder
from torchwatt.distributed.energy_allocation import (
    BUSY_CPU,
    PROCESS_CPU,
    compute_host_shares,
    select_cpu_points,
    thin_cpu_points,
)
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.rank_facts_file import read_facts, write_facts
from torchwatt.distributed.rank_records import Job, RankRecord, merge_records
from torchwatt.journal.journal_reader import read_journal, rebuild_recording
from torchwatt.journal.recovery import recover_report
from torchwatt.reports.emissions import add_impacts
from torchwatt.reports.process_identity import device_identity
from torchwatt.reports.report_result import JobRun
from torchwatt.reports.run_options import carbon_options


def final_facts(facts: RankFacts, report: Report, recording: Recording, trace: Trace) -> RankFacts:
    """Add the run's interval, CPU time and host shares to a rank's facts."""
    window = report.start_ns, report.end_ns
    modules, own = _module_identities(facts, report)
    busy = select_cpu_points(recording, BUSY_CPU, *window)
    return replace(
        facts,
        devices={**facts.devices, **modules},
        own=own,
        start_ns=report.start_ns,
        start_unix_ns=report.start_unix_ns,
        cpu=thin_cpu_points(select_cpu_points(recording, PROCESS_CPU, *window)),
        host_busy_s=max(busy[-1][1] - busy[0][1], 0.0) if busy else None,
        host_shares=compute_host_shares(recording, trace, *window),
    )


def _module_identities(facts: RankFacts, report: Report) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the identity of the superchip of each of a rank's GPUs, and the domains that belong to this rank alone.

    `module:0` names a different module on each rank, or the same one for ranks whose GPUs share it.
    """
    identities: dict[str, str] = {}
    own = list(facts.own)
    for meter in (meter for meter in report.meters if meter.domain.kind == "module"):
        gpus = (meter.fact(MODULE_GPUS_FACT) or "").split(";")
        cpu_affinity = meter.fact("cpu_affinity")
        first_gpu = report.meter(gpus[0])
        name = cpu_affinity or (first_gpu.fact("uuid") if first_gpu is not None else None) or gpus[0]
        identities[str(meter.domain)] = device_identity(facts.host, f"module beside {name}")
        own += [str(meter.domain)] if set(gpus) & set(facts.own) and str(meter.domain) not in own else []
    return identities, tuple(own)


def recover_rank(facts: RankFacts, journal: Path, root: Path) -> RankRecord:
    """Return what a rank's journal contains: status `partial`, or `running` while the rank runs.

    Raises:
        BundleError: The journal cannot be read.
    """
    content = read_journal(journal, root)
    report = recover_report(content)
    counted = {*facts.own, *facts.shared}  # a journal does not record which devices belong to no rank
    counted |= set(_module_identities(facts, report)[1])
    rank_report = replace(report, ledgers=tuple(ledger for ledger in report.ledgers if str(ledger.domain) in counted))
    return RankRecord(
        final_facts(facts, rank_report, rebuild_recording(content), content.trace or EMPTY_TRACE), rank_report
    )


JOURNAL_SUFFIX = ".journal"
_FACTS_NAME = re.compile(r"rank-([0-9]{5,7})\.json")
_UNSAFE_CHARACTER = re.compile(r"[^A-Za-z0-9._-]")
_MANIFEST_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def job_folder_path(root: Path, job: str) -> Path:
    """Return the job's folder: its name with characters replaced that are special to a file system."""
    return root / (_UNSAFE_CHARACTER.sub("_", job).lstrip(".") or "job")


def rank_name(rank: int) -> str:
    """Return the base name of a rank's files."""
    return f"rank-{rank:05d}"


def begin_rank(folder: Path, facts: RankFacts) -> None:
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
        make_private_folder(folder)
        write_facts(path, facts)
    except OSError as error:
        raise ConfigError(f"job={str(folder.parent)!r} cannot be written: {error.strerror or error}") from error


def end_rank(folder: Path, facts: RankFacts, report: Report) -> None:
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
    if path_kind(bundle) is None:
        return _rank_without_bundle(facts, bundle.with_name(f"{bundle.name}{JOURNAL_SUFFIX}"), root)
    try:
        check_manifest(bundle, root)
        report = load_report(bundle, start_ns=facts.start_ns, start_unix_ns=facts.start_unix_ns, root=root)
    except TorchwattError as error:
        return RankRecord(facts, None, f"left a bundle that cannot be used: {error}")
    if report.run_id != facts.run_id:
        return RankRecord(facts, None, f"left the bundle of another run: {report.run_id}")
    return RankRecord(facts, report)


def _rank_without_bundle(facts: RankFacts, journal: Path, root: Path) -> RankRecord:
    """Return the data in the journal of a rank that was killed or still runs."""
    if path_kind(journal) is None:
        return RankRecord(facts, None, "left no bundle and no journal: it was killed, or is still running")
    try:
        record = recover_rank(facts, journal, root)
    except TorchwattError as error:
        return RankRecord(facts, None, f"left no bundle, and a journal that cannot be used: {error}")
    if record.report is not None and record.report.run_id != facts.run_id:
        return RankRecord(facts, None, f"left the journal of another run: {record.report.run_id}")
    return record


def check_manifest(bundle: Path, root: Path | None = None) -> None:
    """Compare the files with the manifest: a torn or changed file must not be used.

    Raises:
        BundleError: A file is missing or differs.
    """
    try:
        lines = read_bundle_file(bundle / MANIFEST, MAX_MANIFEST_BYTES, root).decode().splitlines()
        listed = {match[2]: match[1] for line in lines if (match := _MANIFEST_LINE.fullmatch(line))}
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
    folder = _find_job_folder(root)
    records, broken = [], {}
    for rank, path in _rank_files(folder, root):
        try:
            records.append(read_rank(path, root))
        except BundleError as error:
            broken[rank] = f"left facts that cannot be read: {error}"
    if not records:
        raise BundleError(f"{folder}: no rank can be read: {next(iter(broken.values()), 'none is there')}")
    job = merge_records(records)
    return Job(job.name, job.world_size, job.records, {r: why for r, why in broken.items() if r not in job.records})


def _find_job_folder(folder: Path) -> Path:
    if next(_rank_files(folder, folder), None) is not None:
        return folder
    subfolders = (folder / name for name, kind in _list_folder(folder, folder).items() if kind == "folder")
    job_folders = [path for path in subfolders if next(_rank_files(path, folder), None) is not None]
    if len(job_folders) == 1:
        return job_folders[0]
    if not job_folders:
        raise BundleError(f"{folder} contains no job: there is no rank-00000.json in it or in its folders")
    raise BundleError(
        f"{folder} contains {len(job_folders)} jobs: name one of {', '.join(path.name for path in job_folders[:8])}"
    )


def _rank_files(folder: Path, root: Path) -> Iterator[tuple[int, Path]]:
    for name, kind in _list_folder(folder, root).items():
        match = _FACTS_NAME.fullmatch(name)
        if match is not None and kind != "folder":
            yield int(match[1]), folder / name


def _list_folder(folder: Path, root: Path) -> dict[str, PathKind]:
    try:
        return folder_entries(folder, root)
    except (NotADirectoryError, FileNotFoundError) as error:
        raise BundleError(f"{folder} is not a folder") from error
    except OSError as error:
        raise BundleError(f"cannot read {folder}: {error.strerror}") from error


def merge(directory: str | os.PathLike[str], **carbon: Any) -> JobRun:
    """Combine what the ranks of a job wrote into a folder; ranks without data are named, never estimated.

    Args:
        directory: `DIR` of `profile(job=DIR)`, or the folder of one job in it.
        carbon: `region`, `intensity_g_per_kwh`, `market`, `facility`, `pue`, `factors`, `allow_expired`, as
            `profile()` takes them.

    Raises:
        BundleError: There is no job, there are several, or a rank occurs twice.
        FactorError: The region is in no table.
    """
    report = merge_job(read_job(directory))
    began = datetime.fromtimestamp(report.start_unix_ns / 1e9, UTC)
    return JobRun(add_impacts(report, make_plan(carbon_options(carbon), began)))
