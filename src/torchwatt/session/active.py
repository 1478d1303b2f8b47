"""Registry of running sessions: finds the enclosing session, and closes open ones when the program ends."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from torchwatt.core.warn import warn
from torchwatt.session.replaced import before_exec, forget_before_exec


class Closeable(Protocol):
    """What the registry uses of a session."""

    thread: int
    task: int | None
    pid: int

    @property
    def outer(self) -> Closeable | None: ...  # noqa: D102

    def close(self, reason: str) -> None: ...  # noqa: D102


_lock = threading.RLock()
_active: list[Closeable] = []


def enter(session: Closeable) -> None:
    """Add a session; the first one registers the hooks that close open sessions at exit and before `os.exec*`."""
    with _lock:
        _drop_inherited()
        if not _active:
            atexit.register(_close_all)
            before_exec(_replaced)
        _active.append(session)


def leave(session: Closeable) -> None:
    """Remove a session."""
    with _lock:
        if session in _active:
            _active.remove(session)
        if not _active:
            atexit.unregister(_close_all)
            forget_before_exec(_replaced)


def leave_open_at_exit() -> None:
    """Do not close open sessions in exit handlers; the caller ends them afterwards."""
    atexit.unregister(_close_all)


def current_task() -> int | None:
    """Return the `id` of the running asyncio task, or None outside of one."""
    asyncio = sys.modules.get("asyncio")
    try:
        task = None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None
    return None if task is None else id(task)


def enclosing(thread: int, task: int | None) -> Closeable | None:
    """Return the innermost session of this thread and task; other tasks of the thread do not nest."""
    with _lock:
        _drop_inherited()
        return next((s for s in reversed(_active) if s.thread == thread and s.task in {None, task}), None)


def others(session: Closeable, outer: Closeable | None) -> tuple[Closeable, ...]:
    """Return the sessions that run beside this one: of other threads or, for an outermost session, all others."""
    with _lock:
        _drop_inherited()
        if outer is not None:  # a nested session shares the outer one's meters and is a window in its report
            return tuple(s for s in _active if s.thread != session.thread)
        return tuple(s for s in _active if s is not session)


def inside(session: Closeable) -> list[Closeable]:
    """Return the sessions nested directly in this one."""
    with _lock:
        return [s for s in _active if s.outer is session]


def _drop_inherited() -> None:
    """Remove sessions of a parent process after a fork: they do not run in this process."""
    _active[:] = [s for s in _active if s.pid == os.getpid()]


def _close_all(reason: str = "still open when the program ended") -> int:
    with _lock:
        open_ones: list[Callable[[str], None]] = [s.close for s in reversed(_active) if s.pid == os.getpid()]
    for close in open_ones:
        close(reason)
    return len(open_ones)


def _replaced(by: str) -> None:
    """Close all sessions before `os.exec*` replaces this process by another program."""
    if _close_all(f"replaced by {by}"):
        warn(f"torchwatt: this program replaced itself by {by}, which is not measured: its run ends here")
