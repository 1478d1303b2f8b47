"""How far this machine's clock is from rank 0's: ping-pong over the job's store, in a thread, never in a step.

Rank 0 answers pings with its monotonic clock. Whoever pings keeps the fastest of some round trips: its answer was given
between sending and receiving, so the offset is known to half of the trip (Cristian 1989, "Probabilistic clock
synchronization"). One look is taken at the start, one every minute, and one at the end, so that drift is seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from torchwatt.core.job import Look
from torchwatt.disk.helper_thread import HelperThread

PINGS = 16
EVERY_S = 60.0
ANSWER_S = 1.0  # a ping that is not answered by then is given up
FIRST_S = 10.0  # how long rank 0 may take to appear; meanwhile nobody waits for this thread
QUIET_S = 0.1  # how often rank 0 looks for a first ping; one was answered lately, it looks without a pause
BUSY_S = 0.02
STOP_S = 2.0  # at most so long an end waits for the last look


class Link(Protocol):
    """What is needed of a store."""

    def set(self, key: str, value: bytes) -> None: ...  # noqa: D102
    def get(self, key: str, timeout_s: float, every_s: float = 0.02) -> bytes | None: ...  # noqa: D102
    def add(self, key: str) -> int: ...  # noqa: D102
    def drop(self, key: str) -> None: ...  # noqa: D102


class Answers:
    """Rank 0's side: answers pings in the order of their numbers, until told to stop."""

    def __init__(self, link: Link, prefix: str, host: str, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._link = link
        self._prefix = prefix
        self._clock_ns = clock_ns
        self._stop = threading.Event()
        link.set(f"{prefix}/host", host.encode())
        self._thread = HelperThread(self._run, "torchwatt-clock")
        self._thread.start()

    def stop(self) -> tuple[Look, ...]:
        """Answer no more; return no looks, as this is the clock."""
        self._stop.set()
        self._thread.join(STOP_S)
        return ()

    def _run(self) -> None:
        number, last_s = 1, 0.0
        while not self._stop.is_set():
            busy = time.monotonic() - last_s < BUSY_S
            if self._link.get(f"{self._prefix}/ping/{number}", 0.0) is not None:
                try:
                    self._link.set(f"{self._prefix}/pong/{number}", b"%d" % self._clock_ns())
                    self._link.drop(f"{self._prefix}/ping/{number}")
                except Exception:  # the store is gone, and with it everybody who could ask
                    return
                number, last_s = number + 1, time.monotonic()
            elif not busy:
                # Somebody may have taken a number and died before sending: later ones must not wait for it.
                number += self._link.get(f"{self._prefix}/ping/{number + 1}", 0.0) is not None
                self._stop.wait(QUIET_S)


class Looks:
    """Another machine's side: looks at rank 0's clock now and then, in a thread of its own."""

    def __init__(
        self,
        link: Link,
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
        self._looks: list[Look] = []
        self._stop = threading.Event()
        self._thread = HelperThread(self._run, "torchwatt-clock")
        self._thread.start()

    def stop(self) -> tuple[Look, ...]:
        """Take a last look, waiting for it no longer than stated, and return all of them."""
        self._stop.set()
        self._thread.join(STOP_S)
        return tuple(self._looks)

    def _run(self) -> None:
        try:
            if not self._needed():
                return
            while True:
                last = self._stop.is_set()
                self._look()
                if last:
                    return
                self._stop.wait(EVERY_S)
        except Exception:  # the store is gone: what was seen until now is what is known
            return

    def _needed(self) -> bool:
        """Wait for rank 0 to appear; on one machine there is one clock, and nothing to look at."""
        for _ in range(round(FIRST_S / QUIET_S)):
            theirs = self._link.get(f"{self._prefix}/host", 0.0)
            if theirs is not None:
                return theirs.decode() != self._host or self._force
            if self._stop.wait(QUIET_S):
                break
        return False

    def _look(self) -> None:
        trips: list[tuple[int, int, int]] = []
        while len(trips) < PINGS and (trip := self._ping()) is not None:
            trips.append(trip)
        if trips:
            sent_ns, got_ns, said_ns = min(trips, key=lambda trip: trip[1] - trip[0])
            middle_ns = (sent_ns + got_ns) // 2
            self._looks.append(Look(middle_ns, said_ns - middle_ns, (got_ns - sent_ns + 1) // 2))

    def _ping(self) -> tuple[int, int, int] | None:
        number = self._link.add(f"{self._prefix}/number")
        sent_ns = self._clock_ns()
        self._link.set(f"{self._prefix}/ping/{number}", b"?")
        said = self._link.get(f"{self._prefix}/pong/{number}", ANSWER_S, 0.0)
        got_ns = self._clock_ns()
        if said is None:
            return None
        self._link.drop(f"{self._prefix}/pong/{number}")
        return sent_ns, got_ns, int(said)
