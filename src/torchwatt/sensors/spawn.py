"""Starts and ends the sampler process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.helper_process import helper_command
from torchwatt.sensors.board import anonymous_file

_STDERR_BYTES = 400


class Child:
    """The sampler process, seen from the user's process."""

    def __init__(self, config: Mapping[str, Any], fd: int) -> None:
        """Start it; `fd` is the board's memory.

        Raises:
            SensorError: SAMPLER_THREAD, if no process can be started here.
        """
        self.stopping = False
        data = json.dumps({**config, "fd": fd, "ppid": os.getpid()}).encode()
        self._stderr = anonymous_file("torchwatt-stderr")
        try:
            self._popen = subprocess.Popen(
                helper_command("torchwatt.sensors.sampler_main", str(len(data))),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                bufsize=0,  # nothing is left to flush into a pipe that nobody reads any more
                pass_fds=(fd, *config.get("journal", ())[:2]),
                start_new_session=True,  # Ctrl-C in the user's terminal is not meant for it
            )
        except (OSError, ValueError, TypeError) as error:  # no executable, no more processes, embedded Python
            os.close(self._stderr)
            raise SensorError(f"cannot start the sampler process: {error}", code="SAMPLER_THREAD") from error
        with contextlib.suppress(OSError):  # it has ended already: `alive` and `why` tell
            self._send(data)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._popen.pid

    def alive(self) -> bool:
        """Return whether it still runs."""
        return self._popen.poll() is None

    def wait(self) -> None:
        """Return when it has ended."""
        self._popen.wait()

    def why(self) -> str:
        """Return the end of what it wrote to stderr."""
        size = os.fstat(self._stderr).st_size
        text = os.pread(self._stderr, _STDERR_BYTES, max(size - _STDERR_BYTES, 0)).decode(errors="replace")
        return " ".join(text.split()) or f"exit status {self._popen.poll()}"

    def stop(self, timeout_s: float = 1.0) -> None:
        """End it: ask, wait, and kill what does not listen. A second call does nothing."""
        self.stopping = True
        if self._popen.stdin is None or self._popen.stdin.closed:
            return
        with contextlib.suppress(OSError):  # it has gone already
            self._send(b"q")
        self._popen.stdin.close()
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        os.close(self._stderr)

    def _send(self, data: bytes) -> None:
        assert self._popen.stdin is not None  # noqa: S101  Popen made the pipe
        while data:
            data = data[self._popen.stdin.write(data) or 0 :]
