"""Joules of training, evaluations and checkpoints while they run; known once all meters have passed a part's end."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from math import fsum
from typing import Literal

from torchwatt.core.units import NS_PER_S
from torchwatt.session.pulse import STALE_NS, Pulse

Part = Literal["train", "evaluation", "checkpoint", "rest"]
REACH_NS = 20 * NS_PER_S  # longer since the last reading: read afresh, as `Pulse.update` goes back a minute at most
MOST_ENDS = 256
NOTE_NS = NS_PER_S // 5


@dataclass(frozen=True, slots=True)
class End:
    """The end of a part; several parts if the boundaries between them are unknown."""

    t_ns: int
    parts: frozenset[Part]
    steps: int
    ends_epoch: bool


class Live:
    """Reads the meters at the ends of parts; the report, computed from all readings, may differ slightly.

    Counters are read at the end of a part; other meters publish later, and the part's joules are unknown until then.
    A sum is None if it includes an interval of several parts, or one in which a meter gave no readings.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._ends: deque[End] = deque()
        self._booked_j = 0.0
        self._ended_ns = self._looked_ns = time.monotonic_ns()
        self._gaps = pulse.gaps
        self._sums: dict[str, float | None] = {}
        self._steps = 0

    @property
    def least_j(self) -> float | None:
        """Return the joules read so far, per meter up to its latest reading; None before the first."""
        return fsum(self._pulse.energy_j.values()) if self._pulse.energy_j else None

    @property
    def whole_j(self) -> float | None:
        """Return the joules up to the last instant known to all meters; None if one is late or had a gap."""
        t_ns, whole_j = self._pulse.whole or (0, 0.0)
        late = self._looked_ns - t_ns > STALE_NS
        return None if late or self._gaps or whole_j <= 0 else whole_j

    def carbon_g(self, energy_j: float | None) -> float | None:
        """Convert joules to grams of CO2e; None without a region."""
        return None if energy_j is None else self._pulse.carbon_g(energy_j)

    def glance(self) -> None:
        """Evaluate readings that the sampler has already taken; reads no meter unless the last update is old."""
        now_ns = time.monotonic_ns()
        self._pulse.update(fresh=now_ns - self._looked_ns > REACH_NS)
        self._looked_ns = now_ns
        self._resolve()

    def look(self, *parts: Part, steps: int = 0, ends_epoch: bool = False) -> None:
        """Read all meters now; book the joules since the last end to `parts`, which contain `steps` steps."""
        self._end(frozenset(parts), steps, ends_epoch=ends_epoch)
        self._looked_ns = self._ended_ns
        self._pulse.update(fresh=True)
        self._resolve()

    def note(self, steps: int) -> bool:
        """Record the end of steps without reading meters; within 0.2 s of the last end, do nothing and return False.

        A later reading can then resolve most steps even if slow meters have not published its own instant yet.
        """
        if time.monotonic_ns() - self._ended_ns < NOTE_NS:
            return False
        self._end(frozenset(("train",)), steps)
        return True

    def _end(self, parts: frozenset[Part], steps: int, *, ends_epoch: bool = False) -> None:
        self._ended_ns = time.monotonic_ns()
        self._pulse.request_at(self._ended_ns)
        self._ends.append(End(self._ended_ns, parts, steps, ends_epoch))
        if len(self._ends) > MOST_ENDS:  # no reading for long, or a meter stopped: merge the oldest two
            oldest, second = self._ends.popleft(), self._ends.popleft()
            steps, ends_epoch = oldest.steps + second.steps, oldest.ends_epoch or second.ends_epoch
            self._ends.appendleft(End(second.t_ns, oldest.parts | second.parts, steps, ends_epoch))
            self._pulse.forget(oldest.t_ns)

    def step_j(self) -> float | None:
        """Return the mean joules of the resolved steps since the last call; None if unknown."""
        joules, steps = self._sums.pop("step", None), self._steps
        self._steps = 0
        return None if joules is None or not steps else joules / steps

    def take(self, name: Literal["epoch", "evaluation", "checkpoint", "rest"]) -> float | None:
        """Return the joules of parts finished since the last call; for `epoch`, of its training steps only."""
        return self._sums.pop(name, None)

    @property
    def has_epoch(self) -> bool:
        """Return whether the joules of a finished epoch are known and were not taken."""
        return self._sums.get("epoch") is not None

    def _resolve(self) -> None:
        torn, self._gaps = self._pulse.gaps > self._gaps, self._pulse.gaps
        while self._ends and (joules := self._pulse.result_at(self._ends[0].t_ns)) is not None:
            end, total_j = self._ends.popleft(), fsum(joules.values())
            used_j, self._booked_j = total_j - self._booked_j, total_j
            self._pulse.forget(end.t_ns)
            self._book(end, None if torn or len(end.parts) > 1 else used_j)

    def _book(self, end: End, used_j: float | None) -> None:
        for part in end.parts:
            name = "step" if part == "train" else part
            self._sums[name] = _sum(self._sums.get(name, 0.0), used_j)
        if "train" in end.parts:
            self._steps += end.steps
            self._sums["open"] = _sum(self._sums.get("open", 0.0), used_j)
        if end.ends_epoch:
            self._sums["epoch"] = self._sums.pop("open", None)


def _sum(before_j: float | None, now_j: float | None) -> float | None:
    return None if before_j is None or now_j is None else before_j + now_j
