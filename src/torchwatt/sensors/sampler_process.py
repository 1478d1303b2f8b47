"""Configures, starts and ends the sampler process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel
from torchwatt.disk.descriptors import HeldDescriptor
from torchwatt.helper_process import helper_command
from torchwatt.sensors.protocol import Source
from torchwatt.sensors.sample_buffer import create_memory_file

_STDERR_BYTES = 400
START_S = 2.0
CAN_DETACH = hasattr(os, "pidfd_open")  # Linux
GAUGE_CAPACITY = 1 << 17
ANCHOR_CAPACITY = 1 << 14
# A counter that changes at each read (5 ms) publishes faster; half the reads cost half, and errors grow by sqrt(2).
REDUCED_RATE_PERIODS = {"rapl": 2, "rapl_perf": 2}
# Cumulative times, and models linear in them, lose only resolution if read half as often.
COARSE_SENSORS, LOW_OVERHEAD_PERIODS = frozenset({"proc", "tdp_model", "ram_model"}), 2


def sampler_config(sources: tuple[Source, ...], capacity: int, *, thrifty: bool = False) -> dict[str, Any]:
    """Return the sampler process's configuration: spec and channels of each source, and the number of anchors."""

    def tap(channel: Channel, spec: Mapping[str, Any]) -> dict[str, Any]:
        small = min(capacity, GAUGE_CAPACITY) if channel.quantity == "gauge" else capacity
        period_ns = channel.period_ns * (LOW_OVERHEAD_PERIODS if thrifty and channel.sensor in COARSE_SENSORS else 1)
        calm_ns = REDUCED_RATE_PERIODS.get(channel.sensor, 0) * period_ns
        read_ns = spec.get("rings", {}).get(channel.key, 0)
        config = {"key": channel.key, "period_ns": period_ns, "calm_ns": calm_ns, "capacity": small}
        return {**config, "read_ns": read_ns} if read_ns else config

    listed = [
        {"spec": dict(s.spec), "taps": [tap(channel, s.spec) for meter in s.meters for channel in meter.channels]}
        for s in sources
    ]
    return {"sources": _one_host(listed), "anchors": min(capacity, ANCHOR_CAPACITY)}


def _one_host(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the two /proc sources of one process into one reader: a wake-up costs more than the reads."""
    host = [source for source in listed if source["spec"]["kind"] in {"process", "modelled"}]
    kinds, pids = ({source["spec"][word] for source in host} for word in ("kind", "pid"))
    if (len(host), len(kinds), len(pids)) != (2, 2, 1):
        return listed
    spec = {"kind": "host", "parts": [source["spec"] for source in host]}
    taps = [tap for source in host for tap in source["taps"]]
    return [source for source in listed if source not in host] + [{"spec": spec, "taps": taps}]


class SamplerProcess:
    """Handle of the sampler process in the user's process.

    With pidfd (Linux) the sampler is detached: its parent, a child of this process, has ended. So a program that waits
    for any child, or kills all its children, does not affect it.
    """

    def __init__(self, config: Mapping[str, Any], fd: int) -> None:
        """Start the process; `fd` is the descriptor of the board's memory.

        Raises:
            SensorError: The process cannot be started (SAMPLER_THREAD).
        """
        self.stopping = self._stopped = False
        startup = {"fd": fd, "ppid": os.getpid(), "detached": CAN_DETACH}
        data = json.dumps({**config, **startup}).encode()
        stderr, name = create_memory_file("torchwatt-stderr"), sampler_name(os.getpid())
        self._stderr = HeldDescriptor(stderr)
        try:
            theirs, ours = os.pipe()
        except OSError as error:
            self._stderr.close()
            raise SensorError(f"cannot start the sampler process: {error}", code="SAMPLER_THREAD") from error
        self._orders = HeldDescriptor(ours)
        try:
            self._popen = subprocess.Popen(
                helper_command("torchwatt.sensors.sampler_main", str(len(data)), name, detached=CAN_DETACH),
                stdin=theirs,
                stdout=subprocess.PIPE if CAN_DETACH else subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(fd, *config.get("journal", ())[:2]),
                start_new_session=True,  # Ctrl-C in the user's terminal must not reach it
            )
        except (OSError, ValueError, TypeError) as error:  # no executable, no more processes, embedded Python
            self._orders.close()
            self._stderr.close()
            raise SensorError(f"cannot start the sampler process: {error}", code="SAMPLER_THREAD") from error
        finally:
            os.close(theirs)
        self._detached = _DetachedProcess(self._detached_pid()) if CAN_DETACH else None
        with contextlib.suppress(OSError):  # it has ended already: see `alive` and `why`
            self._send(data)

    @property
    def pid(self) -> int:
        """Return the sampler's process id, 0 if a detached one did not start."""
        return self._popen.pid if self._detached is None else self._detached.pid

    def _detached_pid(self) -> int:
        """Wait for the child to end; return the process id that it wrote (its child's), 0 if it wrote none."""
        assert self._popen.stdout is not None  # noqa: S101  Popen made the pipe
        poll = select.poll()
        poll.register(self._popen.stdout, select.POLLIN)
        if not poll.poll(START_S * 1e3):
            self._popen.kill()  # Python itself does not start
        text = self._popen.stdout.read()
        self._popen.stdout.close()
        self._popen.wait()
        return int(text) if text else 0

    def alive(self) -> bool:
        """Return whether it still runs."""
        return self._popen.poll() is None if self._detached is None else not self._detached.wait_for_end(0)

    def is_suspended(self) -> bool:
        """Return whether a signal or a debugger has suspended the process (state T or t)."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state in {b"T", b"t"}

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the process, at most `timeout_s`; return whether it has ended."""
        if self._detached is not None:
            return self._detached.wait_for_end(timeout_s)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_s)
        return self._popen.poll() is not None

    def why(self) -> str:
        """Return the last 400 bytes of the process's stderr as one line, or a message if it is empty."""
        try:
            fd = self._stderr.number()
            text = os.pread(fd, _STDERR_BYTES, max(os.fstat(fd).st_size - _STDERR_BYTES, 0)).decode(errors="replace")
        except OSError:
            return "it ended, and the program has closed the file of its messages"
        return " ".join(text.split()) or "it ended without a message"

    def stop(self, timeout_s: float = 1.0) -> None:
        """Request the end, wait `timeout_s`, then kill the process. A second call does nothing."""
        if self._stopped:
            return
        self.stopping = self._stopped = True
        with contextlib.suppress(OSError):  # it has gone already
            self._send(b"q")
        self._orders.close()
        if not self.wait(timeout_s):
            self._kill()
            self.wait()
        if self._detached is not None:
            self._detached.close()
        self._stderr.close()

    def _kill(self) -> None:
        if self._detached is None:
            self._popen.kill()
        else:
            self._detached.kill()

    def _send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._orders.number(), data) :]


def sampler_name(pid: int) -> str:
    """Return the name of a process's sampler in the process list."""
    return f"torchwatt-sampler-of-{pid}"


class _DetachedProcess:
    """A process, child or not, identified by a pidfd, because its id may be reused after its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._held: HeldDescriptor | None = None
        with contextlib.suppress(OSError):  # it has ended already, or never began
            self._held = HeldDescriptor(os.pidfd_open(pid)) if pid else None

    def close(self) -> None:
        """Close the descriptor."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def wait_for_end(self, timeout_s: float | None) -> bool:
        """Wait at most `timeout_s` and return whether the process has ended."""
        try:
            if self._held is None:
                return True
            fd = self._held.number()
        except OSError:  # the program has closed it: the process can no longer be observed
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        ended = bool(poll.poll(None if timeout_s is None else timeout_s * 1e3))
        if ended:
            with contextlib.suppress(ChildProcessError):  # the init of a container adopts it, which this one may be
                os.waitpid(self.pid, os.WNOHANG)
        return ended

    def kill(self) -> None:
        """Send SIGKILL."""
        with contextlib.suppress(OSError):  # it has ended, or the program has closed the descriptor
            if self._held is not None:
                signal.pidfd_send_signal(self._held.number(), signal.SIGKILL)
