"""Sends the kernel's runs to JupyterLab over a comm, for the status bar and the panel."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from torchwatt.notebook.history import History, Record

TARGET = "torchwatt.session"
VERSION = 1


class Channel:
    """The comm and its history; opened at the first run. A front end without our extension just closes it."""

    def __init__(self) -> None:
        self.history = History()
        self._lock = threading.Lock()
        self._comm: Any = None
        self._pid = os.getpid()

    def tell(self, record: Record) -> None:
        """Add a record to the history and send it; never raises."""
        self.history.put(record)
        with contextlib.suppress(Exception), self._lock:  # the front end may not listen
            if self._pid != os.getpid():
                return
            if self._comm is None:
                from comm import create_comm

                # A fixed id, because a page reloaded while the kernel is busy cannot request it.
                self._comm = create_comm(target_name=TARGET, comm_id=TARGET, data=_message([record]))
                # Sent by a reloaded page; answered as soon as the kernel is idle.
                self._comm.on_msg(lambda _message: self._all())
            else:
                self._comm.send(_message([record]))

    def close(self) -> None:
        """Close the comm; the history is kept."""
        with contextlib.suppress(Exception), self._lock:
            if self._comm is not None:
                self._comm.close()
            self._comm = None

    def _all(self) -> None:
        with contextlib.suppress(Exception), self._lock:
            self._comm.send(_message(self.history))


def _message(records: Iterable[Record]) -> dict[str, Any]:
    return {"version": VERSION, "runs": [asdict(record) for record in records]}


_channels: dict[int, Channel] = {}


def channel() -> Channel:
    """Return this process's channel; a forked child gets a new one with an empty history."""
    return _channels.setdefault(os.getpid(), Channel())
