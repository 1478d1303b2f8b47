"""Threads of torchwatt in the user's process that `threading.enumerate()` does not list."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable

_running: set[HelperThread] = set()


class HelperThread:
    """A daemon thread that `threading.enumerate()` does not list, and that a program's trace functions do not follow.

    A program may join all listed threads, or wait until only one is left; it would wait forever for a thread that runs
    as long as the session.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        self.name = name
        self._target = target
        self._ended = threading.Event()
        self._ident: int | None = None
        self._pid = 0

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system starts no more threads.
        """
        self._pid = os.getpid()
        _running.add(self)
        try:
            self._ident = _thread.start_new_thread(self._run, ())
        except BaseException:
            _running.discard(self)
            raise

    def _run(self) -> None:
        try:
            self._target()
        finally:
            _running.discard(self)
            self._ended.set()

    def is_alive(self) -> bool:
        """Return whether the thread runs; False in a forked child."""
        return self._pid == os.getpid() and not self._ended.is_set()

    def is_current(self) -> bool:
        """Return whether the calling thread is this one."""
        return self._ident == threading.get_ident()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended, at most `timeout_s`; None waits without limit."""
        if self.is_alive():
            self._ended.wait(timeout_s)


def helper_threads() -> list[str]:
    """Return the names of the helper threads that run in this process, sorted."""
    return sorted(thread.name for thread in list(_running) if thread.is_alive())
