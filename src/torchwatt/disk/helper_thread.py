"""Threads of ours in the user's process, which the program's own look at its threads does not find."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable

_running: set[HelperThread] = set()


class HelperThread:
    """A daemon thread that `threading.enumerate()` does not list, and that a program's trace functions do not follow.

    A program may join all threads that it finds, or wait until there is only one: on a thread that runs as long as
    the session it would wait for ever.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        self.name = name
        self._target = target
        self._ended = threading.Event()
        self._ident: int | None = None
        self._pid = 0

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: No thread can be started.
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
        """Return whether it runs, in this process."""
        return self._pid == os.getpid() and not self._ended.is_set()

    def is_current(self) -> bool:
        """Return whether this is the calling thread."""
        return self._ident == threading.get_ident()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until it has ended, no longer than stated."""
        if self.is_alive():
            self._ended.wait(timeout_s)


def helper_threads() -> list[str]:
    """Return the names of those that run in this process."""
    return sorted(thread.name for thread in list(_running) if thread.is_alive())
