"""Registry of running sessions: finds the enclosing session, and closes open ones when the program ends."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from torchwatt.core.errors import warn
from torchwatt.core.meter import Event
from torchwatt.core.tracebacks import skip_own_frames

if TYPE_CHECKING:
    from torchwatt.core.meter import Recording


class SessionListener(Protocol):
    """Called when sessions begin and end, in the thread that begins or ends them.

    `session` is a `torchwatt.session.session.Session`, which imports this file and so is not named in its types.
    """

    def on_begin(self, session: Any) -> None:
        """Handle a session that has started."""

    def on_end(self, session: Any, recording: Recording) -> None:
        """Handle a session that has its report, and the recording of its meters."""


_listeners_lock = threading.Lock()
_listeners: list[SessionListener] = []
_listened_sessions: list[Any] = []


def add_listener(listener: SessionListener) -> tuple[Any, ...]:
    """Register a listener; return the sessions that run now."""
    with _listeners_lock:
        _listeners.append(listener)
        return tuple(session for session in _listened_sessions if session.running)


def remove_listener(listener: SessionListener) -> None:
    """Unregister a listener."""
    with _listeners_lock:
        _listeners[:] = [attached for attached in _listeners if attached is not listener]


def notify_start(session: Any) -> None:
    """Notify listeners of a new session; a listener that fails adds an event and never raises into the user's code."""
    with _listeners_lock:
        _listened_sessions.append(session)
        notified = tuple(_listeners)
    for listener in notified:
        try:
            listener.on_begin(session)
        except Exception as error:
            _report_listener_error(session, "live metrics do not include this run", error)


def notify_end(session: Any, recording: Recording) -> None:
    """Notify listeners of a session that has ended."""
    with _listeners_lock:
        _listened_sessions[:] = [
            running for running in _listened_sessions if running is not session and running.running
        ]
        notified = tuple(_listeners)
    for listener in notified:
        try:
            listener.on_end(session, recording)
        except Exception as error:
            _report_listener_error(session, "live metrics did not receive the end of this run", error)


def _report_listener_error(session: Any, consequence: str, error: Exception) -> None:
    message = f"{consequence}: {type(error).__name__}: {error}"
    session.note(Event(time.monotonic_ns(), "warning", "METRICS_LOST", "run", message))
    warn(f"torchwatt: {message}", stacklevel=3)


_EXEC_NAMES = ("execv", "execve")  # the others of `os` call these two, and look them up when they are called
_exec_hooks: list[Callable[[str], None]] = []
_exec_wrappers: dict[str, Any] = {}


def add_exec_hook(call: Callable[[str], None]) -> None:
    """Register a callback for `os.exec*`, called with the new program's name; the last registered is called first."""
    if not _exec_hooks:
        for name in _EXEC_NAMES:
            _exec_wrappers[name] = _wrap_exec(getattr(os, name))
            setattr(os, name, _exec_wrappers[name])
    _exec_hooks.append(call)


def remove_exec_hook(call: Callable[[str], None]) -> None:
    """Unregister a callback; the last one restores `os`, unless something else has patched it since."""
    if call in _exec_hooks:
        _exec_hooks.remove(call)
    for name, wrapper in _exec_wrappers.items() if not _exec_hooks else ():
        if getattr(os, name) is wrapper:
            setattr(os, name, wrapper.__wrapped__)


def _wrap_exec(original: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    pid = os.getpid()

    @functools.wraps(original)
    def exec_(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            if os.getpid() == pid and _exec_hooks:  # in a forked child, the sessions are not ours
                _call_exec_hooks(args[0] if args else kwargs.get("path"))
            original(*args, **kwargs)
        except BaseException as error:
            error.__traceback__ = skip_own_frames(error.__traceback__)
            raise

    return exec_


def _call_exec_hooks(path: Any) -> None:
    """Call the hooks if the program can be executed; `os.execvp` tries one folder after the other."""
    with contextlib.suppress(TypeError, ValueError):
        if isinstance(path, int) or os.access(path, os.X_OK):
            name = f"file descriptor {path}" if isinstance(path, int) else os.fsdecode(path)
            for call in reversed(_exec_hooks[:]):
                call(name)


class RegisteredSession(Protocol):
    """What the registry uses of a session."""

    thread: int
    task: int | None
    pid: int

    @property
    def outer(self) -> RegisteredSession | None: ...  # noqa: D102

    def close(self, reason: str) -> None: ...  # noqa: D102


_sessions_lock = threading.RLock()
_sessions: list[RegisteredSession] = []


def register_session(session: RegisteredSession) -> None:
    """Add a session; the first one registers the hooks that close open sessions at exit and before `os.exec*`."""
    with _sessions_lock:
        _drop_inherited_sessions()
        if not _sessions:
            atexit.register(_close_sessions)
            add_exec_hook(_close_before_exec)
        _sessions.append(session)


def unregister_session(session: RegisteredSession) -> None:
    """Remove a session."""
    with _sessions_lock:
        if session in _sessions:
            _sessions.remove(session)
        if not _sessions:
            atexit.unregister(_close_sessions)
            remove_exec_hook(_close_before_exec)


def keep_open_at_exit() -> None:
    """Do not close open sessions in exit handlers; the caller ends them afterwards."""
    atexit.unregister(_close_sessions)


def current_task() -> int | None:
    """Return the `id` of the running asyncio task, or None outside of one."""
    asyncio = sys.modules.get("asyncio")
    try:
        task = None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None
    return None if task is None else id(task)


def enclosing_session(thread: int, task: int | None) -> RegisteredSession | None:
    """Return the innermost session of this thread and task; other tasks of the thread do not nest."""
    with _sessions_lock:
        _drop_inherited_sessions()
        return next((s for s in reversed(_sessions) if s.thread == thread and s.task in {None, task}), None)


def concurrent_sessions(session: RegisteredSession, outer: RegisteredSession | None) -> tuple[RegisteredSession, ...]:
    """Return the sessions that run beside this one: of other threads or, for an outermost session, all others."""
    with _sessions_lock:
        _drop_inherited_sessions()
        if outer is not None:  # a nested session shares the outer one's meters and is a window in its report
            return tuple(s for s in _sessions if s.thread != session.thread)
        return tuple(s for s in _sessions if s is not session)


def nested_sessions(session: RegisteredSession) -> list[RegisteredSession]:
    """Return the sessions nested directly in this one."""
    with _sessions_lock:
        return [s for s in _sessions if s.outer is session]


def _drop_inherited_sessions() -> None:
    """Remove sessions of a parent process after a fork: they do not run in this process."""
    _sessions[:] = [s for s in _sessions if s.pid == os.getpid()]


def _close_sessions(reason: str = "still open when the program ended") -> int:
    with _sessions_lock:
        open_ones: list[Callable[[str], None]] = [s.close for s in reversed(_sessions) if s.pid == os.getpid()]
    for close in open_ones:
        close(reason)
    return len(open_ones)


def _close_before_exec(by: str) -> None:
    """Close all sessions before `os.exec*` replaces this process by another program."""
    if _close_sessions(f"replaced by {by}"):
        warn(f"torchwatt: this program replaced itself by {by}, which is not measured: its run ends here")


class RunView(Protocol):
    """A view of one run. Its methods must not raise, because errors of a view must not reach the user's code.

    `run` is a `torchwatt.Run`, whose session imports this file, so that it is not named in its types.
    """

    def begin(self, run: Any) -> None:
        """Start showing a run."""

    def pause(self) -> None:
        """Stop updating: the run is about to end."""

    def end(self) -> None:
        """Show the finished run."""


class _NullRunView:
    def begin(self, run: Any) -> None: ...

    def pause(self) -> None: ...

    def end(self) -> None: ...


class _RunViewFactory:
    make: Callable[[], RunView] = _NullRunView


def install_run_view(make: Callable[[], RunView]) -> None:
    """Use `make` to create a view for every later `with profile()`."""
    _RunViewFactory.make = staticmethod(make)


def make_run_view(live: str) -> RunView:
    """Return a view, or one that shows nothing."""
    return _NullRunView() if live == "off" else _RunViewFactory.make()
