"""Power of a layer that runs in a loop alone: a reference for the estimate of a run."""

from __future__ import annotations

from dataclasses import dataclass

from torchwatt.core.terms import Domain, Slot


@dataclass(frozen=True, slots=True)
class ReplayedPower:
    """Mean power of one domain while one layer ran in a loop.

    All `slots` do the same work (same class, parameters and input shapes), so one loop represents them all. `sd_w` is
    the standard deviation of the mean, of the readings and between loops.
    """

    domain: Domain
    slots: tuple[Slot, ...]
    power_w: float
    sd_w: float
    seconds: float
    loops: int
    call_s: float  # wall time of one call
    quiet_w: float | None = None  # idle power of the domain before the loop
