"""Registry of listeners to all sessions of this process, for live metrics; empty by default."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

from torchwatt.core.meter import Event
from torchwatt.core.warn import warn

if TYPE_CHECKING:
    from torchwatt.core.meter import Recording
    from torchwatt.session.session import Session


class Listener(Protocol):
    """Called when sessions begin and end, in the thread that begins or ends them."""

    def began(self, session: Session) -> None:
        """Handle a session that has started."""

    def ended(self, session: Session, recording: Recording) -> None:
        """Handle a session that has its report, and the recording of its meters."""


_lock = threading.Lock()
_listeners: list[Listener] = []
_running: list[Session] = []


def attach(listener: Listener) -> tuple[Session, ...]:
    """Register a listener; return the sessions that run now."""
    with _lock:
        _listeners.append(listener)
        return tuple(session for session in _running if session.running)


def detach(listener: Listener) -> None:
    """Unregister a listener."""
    with _lock:
        _listeners[:] = [one for one in _listeners if one is not listener]


def began(session: Session) -> None:
    """Notify listeners of a new session; a listener that fails adds an event and never raises into the user's code."""
    with _lock:
        _running.append(session)
        told = tuple(_listeners)
    for listener in told:
        try:
            listener.began(session)
        except Exception as error:
            _failed(session, "live metrics do not see this run", error)


def ended(session: Session, recording: Recording) -> None:
    """Notify listeners of a session that has ended."""
    with _lock:
        _running[:] = [one for one in _running if one is not session and one.running]
        told = tuple(_listeners)
    for listener in told:
        try:
            listener.ended(session, recording)
        except Exception as error:
            _failed(session, "live metrics miss the end of this run", error)


def _failed(session: Session, what: str, error: Exception) -> None:
    message = f"{what}: {type(error).__name__}: {error}"
    session.note(Event(time.monotonic_ns(), "warning", "METRICS_LOST", "run", message))
    warn(f"torchwatt: {message}", stacklevel=3)
