"""Who wants to know of every session of this process: live metrics attach here, and by default nobody does."""

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
    """Is told of sessions, in the thread that begins and ends them."""

    def began(self, session: Session) -> None:
        """Know of a session that runs from now on."""

    def ended(self, session: Session, recording: Recording) -> None:
        """Know of a session that has its report, and what its meters said."""


_lock = threading.Lock()
_listeners: list[Listener] = []
_running: list[Session] = []


def attach(listener: Listener) -> tuple[Session, ...]:
    """Tell a listener of all sessions from now on; return those that run."""
    with _lock:
        _listeners.append(listener)
        return tuple(session for session in _running if session.running)


def detach(listener: Listener) -> None:
    """Tell it no more."""
    with _lock:
        _listeners[:] = [one for one in _listeners if one is not listener]


def began(session: Session) -> None:
    """Tell of a session that has begun; a listener that fails is the session's event, never the user's exception."""
    with _lock:
        _running.append(session)
        told = tuple(_listeners)
    for listener in told:
        try:
            listener.began(session)
        except Exception as error:
            _failed(session, "live metrics do not see this run", error)


def ended(session: Session, recording: Recording) -> None:
    """Tell of a session that has ended."""
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
