"""Windows that are being joined: one worker process at a time, looked after without waiting."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torchwatt.core.activity import Activity
from torchwatt.core.errors import TraceError
from torchwatt.helper_process import helper_command
from torchwatt.tracing.devices.exchange import read_activities, write_ranges
from torchwatt.tracing.traces.live import Live

PATIENCE_S = 60.0  # for the last windows, when a session ends
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where there is one, a trace never touches a disk


@dataclass(slots=True)
class Job:
    """One window on its way."""

    process: subprocess.Popen[bytes]
    result: Path
    covered: tuple[int, int]


class Jobs:
    """Hands windows to workers and takes what comes back; `folder` is a directory of its own, gone with `close`."""

    def __init__(self, folder: Path | None = None) -> None:
        parent = folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        self.folder = Path(tempfile.mkdtemp(prefix="torchwatt-", dir=parent))
        self._pid = os.getpid()
        self._job: Job | None = None
        self._count = 0
        self.windows: list[tuple[Activity, ...]] = []
        self.failures: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether a window is still being joined."""
        self.look()
        return self._job is not None

    def next_trace(self) -> Path:
        """Return where the next trace is to be written."""
        return self.folder / f"{self._count}.json"

    def hand_over(self, ranges: Live, offset_ns: int, covered: tuple[int, int]) -> None:
        """Start a worker on the trace that was written to `next_trace()`; devices were watched while `covered`."""
        trace = self.next_trace()
        table, result = trace.with_suffix(".ranges"), trace.with_suffix(".joined")
        write_ranges(table, ranges)
        arguments = [str(trace), str(table), str(result), str(offset_ns)]
        command = helper_command("torchwatt.tracing.devices.worker", *arguments)
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        self._job = Job(process, result, covered)
        self._count += 1

    def look(self) -> None:
        """Take a result that is there, without waiting."""
        job = self._job
        if job is None or job.process.poll() is None:
            return
        self._job = None
        try:
            found = read_activities(job.result)
            self.windows.append(tuple(replace(activity, covered=(job.covered,)) for activity in found))
        except TraceError as error:
            self.failures.append(str(error))
        job.result.unlink(missing_ok=True)

    def finish(self, patience_s: float = PATIENCE_S) -> None:
        """Wait for the last window."""
        if self._job is not None:
            began = time.monotonic()
            try:
                self._job.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._job.process.kill()
                self._job.process.wait()
                self.failures.append(f"joining a window took more than {time.monotonic() - began:.0f} s")
                self._job = None
        self.look()

    def close(self) -> None:
        """End what runs and remove the folder; in a forked child, such as a loader's worker, both are the parent's."""
        if os.getpid() != self._pid:
            return
        if self._job is not None:
            self._job.process.kill()
            self._job.process.wait()
            self._job = None
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)
