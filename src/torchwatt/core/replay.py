"""What a layer draws when it is looped alone: the ground truth that a run's estimate can lean on."""

from __future__ import annotations

from dataclasses import dataclass

from torchwatt.core.terms import Domain, Slot


@dataclass(frozen=True, slots=True)
class ReplayedPower:
    """The mean power of one domain while one piece of work ran over and over.

    All `slots` do the same work (same class, parameters and input shapes), so one loop stands for all of them.
    `sd_w` is the standard deviation of the mean: the reading's, and between the loops of the same work.
    """

    domain: Domain
    slots: tuple[Slot, ...]
    power_w: float
    sd_w: float
    seconds: float
    loops: int
    call_s: float  # wall time of one call
    quiet_w: float | None = None  # the domain's power with nothing running, just before
