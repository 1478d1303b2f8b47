"""Identifies the process that writes a journal, and checks whether it is alive."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, identified by pid and start time (ticks since boot), as pids are reused."""

    pid: int
    started_ticks: int | None
    boot_id: str
    host: str

    def alive(self) -> bool | None:
        """Return whether the process is alive; None if unknown from here: another machine or container."""
        current = this_process()
        if (self.host, self.boot_id) != (current.host, current.boot_id):
            return False if self.host == current.host else None
        if self.started_ticks is not None:
            return started_ticks(self.pid) == self.started_ticks
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return None
        return True


def this_process() -> Owner:
    """Return this process."""
    return Owner(os.getpid(), started_ticks(os.getpid()), _boot_id(), platform.node())


def started_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks; None if it has ended or /proc has no entry (proc(5), stat, field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in {b"Z", b"X"} else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
