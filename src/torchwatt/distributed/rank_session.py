"""A session as a rank of a job: which meters it reads, what it writes, and the merge at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchwatt.audit.seal import MANIFEST
from torchwatt.core.errors import BundleError, TorchwattError, warn
from torchwatt.core.job import RankFacts, RankPlace
from torchwatt.core.meter import Meter, Recording
from torchwatt.core.report import Report
from torchwatt.core.trace import Trace
from torchwatt.distributed import job_folder, job_store
from torchwatt.distributed.clock_offsets import ClockClient, ClockServer
from torchwatt.distributed.job_folder import final_facts
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.job_store import JobStore, current_device, rank_and_world_size
from torchwatt.distributed.rank_assignment import AssignedMeters, assign_meters, rank_place
from torchwatt.distributed.rank_facts_file import read_facts
from torchwatt.distributed.rank_records import Job
from torchwatt.journal.journal_directory import remove_journal
from torchwatt.reports.process_identity import HOST_VARIABLE, device_identity, host_id
from torchwatt.reports.run_options import RunOptions
from torchwatt.sensors.protocol import Discovery

STORE_TIMEOUT_S = 5.0  # timeout of one store operation
_session_counts: dict[str, int] = {}  # number of sessions of each job that this process has started


def join_job(run_id: str, model: Any, *, root: Path | None, wants_report: bool, wait_s: float) -> RankSession | None:
    """Return this process's membership in a job; None if it is not a rank of one.

    Args:
        run_id: Of the session.
        model: Its device tells which GPU is this rank's.
        root: Where ranks write their bundles; None: only a temporary folder, if the job's report is wanted.
        wants_report: Whether the job's report is wanted at the end.
        wait_s: How long rank 0 waits for the others at the end.
    """
    place = rank_place(os.environ, rank_and_world_size())
    return None if place is None else RankSession(place, run_id, model, root, wants_report=wants_report, wait_s=wait_s)


class RankSession:
    """Holds a rank's place in its job and does the job's part of starting and ending a session."""

    def __init__(
        self, place: RankPlace, run_id: str, model: Any, root: Path | None, *, wants_report: bool, wait_s: float
    ) -> None:  # fmt: skip
        self.host = host_id()
        self.owned = AssignedMeters(Discovery())
        self._model = model
        self._root = root
        self._wanted = wants_report and (place.world_size > 1 or root is not None)
        self._wait_s = wait_s
        self._folder: Path | None = None
        self._temporary = False
        self._link: JobStore | None = None
        self._clock: ClockServer | ClockClient | None = None
        if self._wanted:  # the second block of a program is a separate job
            _session_counts[place.job] = again = _session_counts.get(place.job, 0) + 1
            place = place if again == 1 else replace(place, job=f"{place.job}.{again}")
        self.place = place
        self.facts = RankFacts(place, self.host, run_id)

    @property
    def leads_files(self) -> bool:
        """Return whether this rank writes the files of the whole job."""
        return self.place.rank == 0 or not self._wanted

    def assign_meters_here(self, discovery: Discovery) -> Discovery:
        """Return the part of a discovery that this rank meters."""
        self.owned = assign_meters(discovery, self.place, current_device(self._model))
        self._model = None  # it may be large, and is the user's
        return self.owned.discovery

    def begin(self, meters: Sequence[Meter]) -> None:
        """Write this rank's first facts and start measuring the offset to rank 0's clock.

        Raises:
            ConfigError: The job's folder cannot be used.
        """
        if not self._wanted:
            return
        uuids = {str(m.domain): uuid for m in meters if (uuid := m.fact("uuid"))}
        numbers = {str(m.domain): int(n) for m in meters if (n := m.fact("nvml_index") or "").isdecimal()}
        self.facts = replace(
            self.facts,
            start_ns=time.monotonic_ns(),
            start_unix_ns=time.time_ns(),
            devices={name: device_identity(self.host, uuid) for name, uuid in uuids.items()},
            numbers=numbers,
            own=self.owned.own,
            shared=self.owned.shared,
        )
        self._temporary = self._root is None
        root = self._root or Path(tempfile.mkdtemp(prefix="torchwatt-job-"))
        folder = job_folder.job_folder_path(root, self.place.job)
        job_folder.begin_rank(folder, self.facts)
        self._folder = folder  # only a folder set here is removed by `undo` or `end`
        self._connect()

    def _connect(self) -> None:
        """Open the store and the clock; without torch.distributed there is neither, and ranks share only files."""
        self._link = JobStore.open(STORE_TIMEOUT_S)
        if self._link is None or self.place.world_size < 2:
            return
        prefix = f"{self._prefix}/clock"
        with contextlib.suppress(Exception):  # the store is gone: times are then aligned by wall clocks
            if self.place.rank == 0:
                self._clock = ClockServer(self._link.clone(), prefix, self.host)
            elif self.place.is_node_leader:
                self._clock = ClockClient(self._link.clone(), prefix, self.host, force=HOST_VARIABLE in os.environ)

    @property
    def _prefix(self) -> str:
        return f"torchwatt/{self.place.job}"

    def end(self, report: Report, recording: Recording, trace: Trace) -> Report | None:
        """Write this rank's bundle and facts; return the job's report on rank 0 if it could be merged.

        Missing or broken data of other ranks does not raise: the report names those ranks.
        """
        if self._folder is None:
            return None
        try:
            looks = self._clock.stop() if self._clock is not None and self.place.rank != 0 else ()
            self.facts = replace(final_facts(self.facts, report, recording, trace), clock=looks, ended=True)
            job_folder.end_rank(self._folder, self.facts, report)
            if self.place.rank != 0:
                self._send()
                return None
            return merge_job(self._gather_job()) if self._link is not None or self.place.world_size == 1 else None
        finally:
            self._close()

    def add_journal(self, options: RunOptions) -> RunOptions:
        """Return the options with a journal in the job's folder, which is all that remains of a killed rank."""
        if self._temporary or self._folder is None or isinstance(options.journal, Path):
            return options
        return replace(options, journal=self._folder / f"{self._name}{job_folder.JOURNAL_SUFFIX}")

    def _send(self) -> None:
        """Send this rank's files to rank 0 if there is a store; files in a job folder also stay on disk."""
        assert self._folder is not None  # noqa: S101  only called with one
        link = self._link or JobStore.open(STORE_TIMEOUT_S)
        name = job_folder.rank_name(self.place.rank)
        try:
            if link is not None:
                content = job_store.pack_bundle(self._folder, [f"{name}.json", name])
                job_store.send_bundle(link, f"{self._prefix}/rank/{self.place.rank}", content)
        except Exception as error:  # rank 0 is gone, and its store with it
            where = "it is lost" if self._temporary else f"it is in {self._folder}"
            message = f"torchwatt: rank 0 did not receive the measurements of rank {self.place.rank}: {error}; {where}"
            warn(message)

    def _gather_job(self) -> Job:
        """Wait up to `wait_s` for the other ranks' files, and read the folder with those that arrived."""
        assert self._folder is not None  # noqa: S101  only called with one
        deadline_s, late = time.monotonic() + self._wait_s, {}
        for rank in range(1, self.place.world_size):
            why = self._fetch(rank, deadline_s)
            if why:
                late[rank] = why
        job = job_folder.read_job(self._folder)
        why_not = {rank: why for rank, why in late.items() if rank not in job.records}
        return Job(job.name, job.world_size, job.records, {**why_not, **job.lost})

    def _fetch(self, rank: int, deadline_s: float) -> str:
        """Receive one rank's files into the folder; return the reason if they are missing, else ""."""
        assert self._folder is not None  # noqa: S101  only called with one
        name = job_folder.rank_name(rank)
        if self._link is None:
            return "could not send its data: torch.distributed was not initialised"
        try:
            while True:  # on a shared file system they may be here already
                if (self._folder / name / "statement.json").is_file() and self._has_ended(name):
                    return ""
                now_s = time.monotonic()
                content = job_store.receive_bundle(
                    self._link, f"{self._prefix}/rank/{rank}", min(now_s + 0.1, deadline_s)
                )
                if content is not None:
                    break
                if now_s >= deadline_s:
                    return f"sent no data within {self._wait_s:g} s of the end of rank 0"
            if not (self._folder / f"{name}.json").exists() or not self._has_ended(name):
                job_store.unpack_bundle(content, self._folder, name)
        except (TorchwattError, ValueError, KeyError, TypeError) as error:
            return f"sent data that cannot be read: {error}"
        return ""

    def _has_ended(self, name: str) -> bool:
        assert self._folder is not None  # noqa: S101  only called with one
        try:
            return read_facts(self._folder / f"{name}.json").ended
        except BundleError:
            return False

    def tidy(self) -> None:
        """Remove the journal of a rank whose bundle was written, as the bundle contains everything in it."""
        if self._folder is not None and not self._temporary and (self._folder / self._name / MANIFEST).is_file():
            remove_journal(self._folder / f"{self._name}{job_folder.JOURNAL_SUFFIX}")

    @property
    def _name(self) -> str:
        return job_folder.rank_name(self.place.rank)

    def undo(self) -> None:
        """Close and remove everything of a session that failed to start."""
        if self._folder is not None:
            (self._folder / f"{self._name}.json").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._folder.rmdir()
        if self._clock is not None:
            self._clock.stop()
        self._close()

    def _close(self) -> None:
        if isinstance(self._clock, ClockServer):
            self._clock.stop()
        self._clock = self._link = None
        if self._temporary and self._folder is not None:
            shutil.rmtree(self._folder.parent, ignore_errors=True)
