"""Selects the meters that make up the total of a running session; updated every few seconds at constant cost."""

from __future__ import annotations

import time

from torchwatt.attribution.counting import counting
from torchwatt.attribution.device_users import uses
from torchwatt.core.meter import Recording
from torchwatt.core.trace import EMPTY_TRACE
from torchwatt.core.units import NS_PER_S
from torchwatt.session.known import cuda_use
from torchwatt.session.session import Session

LOOK_NS = 2 * NS_PER_S
EARLY_NS = 5 * NS_PER_S  # before this, readings may not yet show what a counter covers
BACK_NS = 30 * NS_PER_S  # length of the readings that an update compares


class Counted:
    """Maps each meter to the name under which its joules count; a meter that is not in the map is not in the total."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._looked_ns = 0
        self._ours: set[str] = set()  # GPUs once identified as used by this process; they stay so
        self._names: dict[str, str] | None = None

    def names(self) -> dict[str, str]:
        """Return the name of each counted domain, at most two seconds old while the session runs."""
        now_ns = time.monotonic_ns()
        if self._names is None or (self._session.running and now_ns - self._looked_ns > LOOK_NS):
            self._looked_ns = now_ns
            self._names = self._look(now_ns)
        return self._names

    def _look(self, now_ns: int) -> dict[str, str]:
        session = self._session
        if all(meter.domain.kind != "gpu" for meter in session.feed.meters):
            return counting(Recording(session.feed.meters, ()), {})
        recording = session.feed.snapshot(max(now_ns - BACK_NS, 0))
        used = uses(recording, EMPTY_TRACE, cuda_use(recording.meters), session.start_ns, now_ns)
        self._ours |= {name for name, use in used.items() if use.user == "ours"}
        foreign_uses = {name: use for name, use in used.items() if name not in self._ours}
        return counting(recording, foreign_uses, early=now_ns - session.start_ns < EARLY_NS)
