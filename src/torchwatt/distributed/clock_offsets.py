"""Measures the offset of this machine's clock from rank 0's by ping-pong over the job's store, in a thread.

Rank 0 answers pings with its monotonic clock. The client keeps the fastest of several round trips: the answer was
given between sending and receiving, so the offset is known to half of the trip (Cristian 1989, "Probabilistic clock
synchronization"). It measures at the start, every minute, and at the end, so that drift is seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from torchwatt.core.job import ClockOffset
from torchwatt.disk.helper_thread import HelperThread

PING_COUNT = 16
MEASUREMENT_PERIOD_S = 60.0
PING_TIMEOUT_S = 1.0  # timeout of one ping
SERVER_TIMEOUT_S = 10.0  # how long to wait for rank 0 to appear; the program does not wait for this thread
IDLE_POLL_S = 0.1  # polling interval of rank 0; within BUSY_S of a ping it polls without a pause
BUSY_POLL_S = 0.02
STOP_TIMEOUT_S = 2.0  # longest wait for the last measurement at the end


class KeyValueStore(Protocol):
    """What the clock needs of a store."""

    def set(self, key: str, value: bytes) -> None: ...  # noqa: D102
    def get(self, key: str, timeout_s: float, every_s: float = 0.02) -> bytes | None: ...  # noqa: D102
    def add(self, key: str) -> int: ...  # noqa: D102
    def drop(self, key: str) -> None: ...  # noqa: D102


class ClockServer:
    """Rank 0's side: answers pings in the order of their numbers, until `stop`."""

    def __init__(
        self, link: KeyValueStore, prefix: str, host: str, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._link = link
        self._prefix = prefix
        self._clock_ns = clock_ns
        self._stop = threading.Event()
        link.set(f"{prefix}/host", host.encode())
        self._thread = HelperThread(self._run, "torchwatt-clock")
        self._thread.start()

    def stop(self) -> tuple[ClockOffset, ...]:
        """Stop answering; return no offsets, because this is the reference clock."""
        self._stop.set()
        self._thread.join(STOP_TIMEOUT_S)
        return ()

    def _run(self) -> None:
        number, last_s = 1, 0.0
        while not self._stop.is_set():
            busy = time.monotonic() - last_s < BUSY_POLL_S
            if self._link.get(f"{self._prefix}/ping/{number}", 0.0) is not None:
                try:
                    self._link.set(f"{self._prefix}/pong/{number}", b"%d" % self._clock_ns())
                    self._link.drop(f"{self._prefix}/ping/{number}")
                except Exception:  # the store is gone, and with it all clients
                    return
                number, last_s = number + 1, time.monotonic()
            elif not busy:
                # A client may have taken a number and died before sending: later pings must not wait for it.
                number += self._link.get(f"{self._prefix}/ping/{number + 1}", 0.0) is not None
                self._stop.wait(IDLE_POLL_S)


class ClockClient:
    """Another machine's side: measures the offset to rank 0's clock periodically, in a helper thread."""

    def __init__(
        self,
        link: KeyValueStore,
        prefix: str,
        host: str,
        *,
        force: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._link = link
        self._prefix = prefix
        self._host = host
        self._force = force
        self._clock_ns = clock_ns
        self._looks: list[ClockOffset] = []
        self._stop = threading.Event()
        self._thread = HelperThread(self._run, "torchwatt-clock")
        self._thread.start()

    def stop(self) -> tuple[ClockOffset, ...]:
        """Measure once more, for at most `STOP_TIMEOUT_S`, and return all measurements."""
        self._stop.set()
        self._thread.join(STOP_TIMEOUT_S)
        return tuple(self._looks)

    def _run(self) -> None:
        try:
            if not self._is_needed():
                return
            while True:
                is_last = self._stop.is_set()
                self._look()
                if is_last:
                    return
                self._stop.wait(MEASUREMENT_PERIOD_S)
        except Exception:  # the store is gone: earlier measurements are kept
            return

    def _is_needed(self) -> bool:
        """Wait for rank 0 to appear; return False if it is on this machine, with the same clock."""
        for _ in range(round(SERVER_TIMEOUT_S / IDLE_POLL_S)):
            theirs = self._link.get(f"{self._prefix}/host", 0.0)
            if theirs is not None:
                return theirs.decode() != self._host or self._force
            if self._stop.wait(IDLE_POLL_S):
                break
        return False

    def _look(self) -> None:
        trips: list[tuple[int, int, int]] = []
        while len(trips) < PING_COUNT and (trip := self._ping()) is not None:
            trips.append(trip)
        if trips:
            sent_ns, got_ns, said_ns = min(trips, key=lambda trip: trip[1] - trip[0])
            middle_ns = (sent_ns + got_ns) // 2
            self._looks.append(ClockOffset(middle_ns, said_ns - middle_ns, (got_ns - sent_ns + 1) // 2))

    def _ping(self) -> tuple[int, int, int] | None:
        number = self._link.add(f"{self._prefix}/number")
        sent_ns = self._clock_ns()
        self._link.set(f"{self._prefix}/ping/{number}", b"?")
        pong = self._link.get(f"{self._prefix}/pong/{number}", PING_TIMEOUT_S, 0.0)
        got_ns = self._clock_ns()
        if pong is None:
            return None
        self._link.drop(f"{self._prefix}/pong/{number}")
        return sent_ns, got_ns, int(pong)
