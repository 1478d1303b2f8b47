"""Which sessions run now: who encloses whom, and that none outlives the program."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import Protocol


class Closeable(Protocol):
    """What this list needs to know of a session."""

    thread: int
    pid: int

    def close(self, reason: str) -> None: ...  # noqa: D102


_lock = threading.RLock()
_active: list[Closeable] = []


def enter(session: Closeable) -> None:
    """Add a session; the first one also makes sure that a forgotten one ends with the program."""
    with _lock:
        _drop_inherited()
        if not _active:
            atexit.register(_close_all)
        _active.append(session)


def leave(session: Closeable) -> None:
    """Remove a session."""
    with _lock:
        if session in _active:
            _active.remove(session)
        if not _active:
            atexit.unregister(_close_all)


def enclosing(thread: int) -> Closeable | None:
    """Return the innermost session that this thread is in."""
    with _lock:
        _drop_inherited()
        return next((s for s in reversed(_active) if s.thread == thread), None)


def others(thread: int) -> tuple[Closeable, ...]:
    """Return the sessions of other threads that run now."""
    with _lock:
        _drop_inherited()
        return tuple(s for s in _active if s.thread != thread)


def _drop_inherited() -> None:
    """Forget sessions of the process that forked this one: nothing of them runs here."""
    _active[:] = [s for s in _active if s.pid == os.getpid()]


def _close_all() -> None:
    with _lock:
        open_ones: list[Callable[[str], None]] = [s.close for s in reversed(_active) if s.pid == os.getpid()]
    for close in open_ones:
        close("still open when the program ended")
