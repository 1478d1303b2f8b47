"""Join windows in worker processes, one at a time, polled without waiting."""

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
    """One window being joined."""

    process: subprocess.Popen[bytes]
    result: Path
    covered: tuple[int, int]


class Jobs:
    """Pass windows to workers and collect their results; `folder` is a temporary directory that `close` removes."""

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
        """Whether a window is being joined."""
        self.look()
        return self._job is not None

    def next_trace(self) -> Path:
        """Return the path for the next trace."""
        return self.folder / f"{self._count}.json"

    def hand_over(self, ranges: Live, offset_ns: int, covered: tuple[int, int]) -> None:
        """Start a worker on the trace at `next_trace()`; `covered`: when devices were recorded."""
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
        """Collect a finished result, without waiting."""
        job = self._job
        if job is None or job.process.poll() is None:
            return
        self._job = None
        try:
            activities = read_activities(job.result)
            self.windows.append(tuple(replace(activity, covered=(job.covered,)) for activity in activities))
        except TraceError as error:
            self.failures.append(str(error))
        job.result.unlink(missing_ok=True)

    def finish(self, patience_s: float = PATIENCE_S) -> None:
        """Wait for the last window, at most `patience_s`."""
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
        """Kill the worker and remove the folder; in a forked child, such as a loader's worker, do nothing."""
        if os.getpid() != self._pid:
            return
        if self._job is not None:
            self._job.process.kill()
            self._job.process.wait()
            self._job = None
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)
