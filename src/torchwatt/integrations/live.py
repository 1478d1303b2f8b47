"""Joules while training runs, by what ran: each look closes the part before it."""

from __future__ import annotations

import time
from math import fsum
from typing import Literal

from torchwatt.core.units import NS_PER_S
from torchwatt.session.pulse import Pulse

Part = Literal["train", "evaluation", "checkpoint", "rest"]
STALE_NS = 20 * NS_PER_S  # a look that spares readings goes back a minute at most


class Live:
    """Reads the meters at the ends of parts; the report, which sees all readings at once, may differ a little.

    Joules that cannot be told apart, because a meter was silent when one part ended, are in no part's sum; such a sum
    is unknown (None) until it is taken.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._booked_j = 0.0
        self._looked_ns = time.monotonic_ns()
        self._open: set[Part] = set()  # what ran since the last look that all meters answered
        self._sums: dict[str, float | None] = {}

    @property
    def energy_j(self) -> float | None:
        """Return the joules so far, as of the last look; None before any meter was read."""
        return fsum(self._pulse.energy_j.values()) if self._pulse.energy_j else None

    @property
    def carbon_g(self) -> float | None:
        """Return the grams so far; None without a region."""
        return self._pulse.carbon_g()

    @property
    def is_whole(self) -> bool:
        """Return whether every meter has answered lately: only then are the joules so far all of them."""
        watts = self._pulse.power_w(self._looked_ns)
        return bool(watts) and None not in watts.values() and set(watts) <= set(self._pulse.energy_j)

    def glance(self) -> None:
        """Read what the sampler has read anyway; cheap."""
        now_ns = time.monotonic_ns()
        self._pulse.beat(fresh=now_ns - self._looked_ns > STALE_NS)
        self._looked_ns = now_ns

    def look(self, *parts: Part) -> None:
        """Read all meters now; what was used since the last look is of these parts."""
        self._pulse.beat(fresh=True)
        self._looked_ns = time.monotonic_ns()
        self._open.update(parts)
        if not self.is_whole:
            return
        total_j = self.energy_j or 0.0
        used_j, self._booked_j = total_j - self._booked_j, total_j
        for part in self._open:
            self._add(part, used_j if len(self._open) == 1 else None)
        self._open.clear()

    def _add(self, part: Part, used_j: float | None) -> None:
        for name in ("step", "epoch") if part == "train" else (part,):
            before_j = self._sums.get(name, 0.0)
            self._sums[name] = None if before_j is None or used_j is None else before_j + used_j

    def take(self, name: str) -> float | None:
        """Return the joules of `step` or `epoch` (both of training alone), or a part, since they were last taken."""
        if ("train" if name in {"step", "epoch"} else name) in self._open:
            self._sums[name] = None  # what is not known yet would be in the next sum
            return None
        return self._sums.pop(name, None)
