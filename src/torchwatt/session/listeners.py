"""Registry of listeners to all sessions of this process, for live metrics; empty by default."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from torchwatt.core.meter import Event
from torchwatt.core.warn import warn

if TYPE_CHECKING:
    from torchwatt.core.meter import Recording


class Listener(Protocol):
    """Called when sessions begin and end, in the thread that begins or ends them.

    `session` is a `torchwatt.session.session.Session`, which imports this file and so is not named in its types.
    """

    def began(self, session: Any) -> None:
        """Handle a session that has started."""

    def ended(self, session: Any, recording: Recording) -> None:
        """Handle a session that has its report, and the recording of its meters."""


_lock = threading.Lock()
_listeners: list[Listener] = []
_running: list[Any] = []


def attach(listener: Listener) -> tuple[Any, ...]:
    """Register a listener; return the sessions that run now."""
    with _lock:
        _listeners.append(listener)
        return tuple(session for session in _running if session.running)


def detach(listener: Listener) -> None:
    """Unregister a listener."""
    with _lock:
        _listeners[:] = [attached for attached in _listeners if attached is not listener]


def began(session: Any) -> None:
    """Notify listeners of a new session; a listener that fails adds an event and never raises into the user's code."""
    with _lock:
        _running.append(session)
        notified = tuple(_listeners)
    for listener in notified:
        try:
            listener.began(session)
        except Exception as error:
            _failed(session, "live metrics do not include this run", error)


def ended(session: Any, recording: Recording) -> None:
    """Notify listeners of a session that has ended."""
    with _lock:
        _running[:] = [running for running in _running if running is not session and running.running]
        notified = tuple(_listeners)
    for listener in notified:
        try:
            listener.ended(session, recording)
        except Exception as error:
            _failed(session, "live metrics did not receive the end of this run", error)


def _failed(session: Any, consequence: str, error: Exception) -> None:
    message = f"{consequence}: {type(error).__name__}: {error}"
    session.note(Event(time.monotonic_ns(), "warning", "METRICS_LOST", "run", message))
    warn(f"torchwatt: {message}", stacklevel=3)
