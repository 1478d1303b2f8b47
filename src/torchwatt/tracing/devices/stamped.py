"""Timestamp ends of steps on each CUDA device that a program uses, within the budget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from math import ceil

import torch

from torchwatt.tracing.budget import Budget
from torchwatt.tracing.devices.cuda_events import CudaEvents
from torchwatt.tracing.devices.stamps import NO_STAMPS, Kind, Stamped, Stamps
from torchwatt.tracing.own_time import own_time
from torchwatt.tracing.waiting import devices_in_use

STAMP_SHARE = 0.1  # of the budget; where steps are too short, some are not stamped

own_ns = own_time()


class Clocks:
    """Stamp ends of steps on the current device; only for the first thread that ends a step."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._stamps: dict[int, Stamps] = {}
        self._owner: object = None
        self._until_stamp = 0  # steps until the next stamp
        self._cost_ns = 0.0  # of a stamp, moving average

    def ended(
        self, owner: object, budget: Budget, step_ns: float, *, kind: Kind = "step", surely: bool = False
    ) -> None:
        """Stamp the end of a step or call, unless it costs too much for so short a step; `surely`: always.

        Args:
            owner: The thread's owner.
            budget: Pays.
            step_ns: Length of a step.
            kind: What ended.
            surely: A window begins or ends here.
        """
        self._owner = self._owner or owner
        if self._owner is not owner or budget.share <= 0:
            return
        if self._until_stamp > 0 and not surely:
            self._until_stamp -= 1
            return
        began = own_ns()
        stamps = self._current()
        plain = stamps is not None and stamps.mark(kind)
        cost_ns = own_ns() - began
        budget.pay("fixed", cost_ns)
        if plain:
            self._cost_ns += (cost_ns - self._cost_ns) * (0.05 if self._cost_ns else 1.0)
        self._until_stamp = ceil(self._cost_ns / max(STAMP_SHARE * budget.share * step_ns, 1.0)) - 1 if step_ns else 0

    def still(self) -> None:
        """Record that the host has waited for all devices."""
        for stamps in self._stamps.values():
            stamps.still()

    def _current(self) -> Stamps | None:
        """Return the stamps of the current device; None where the program has not initialised it."""
        index = torch.cuda.current_device()
        stamps = self._stamps.get(index)
        if stamps is None and index in devices_in_use():
            stamps = self._stamps[index] = Stamps(CudaEvents(index), self._clock_ns)
        return stamps

    def settle(self) -> None:
        """Read the remaining events: on the thread that ends the session, which has waited for the devices."""
        for index, stamps in self._stamps.items():
            with contextlib.suppress(Exception), torch.cuda.device(index):  # keep what was read before
                stamps.settle()

    def only(self) -> Stamped:
        """Return the lag of the only device in use; no stamps where several devices are in use."""
        used = devices_in_use() if self._stamps else ()
        return self.known(f"gpu:{used[0]}") if len(used) == 1 else NO_STAMPS

    def known(self, device: str) -> Stamped:
        """Return the host's ends and the lag of device "gpu:<torch index>" behind each."""
        _, _, number = device.partition(":")
        stamps = self._stamps.get(int(number)) if number.isdecimal() else None
        return stamps.known() if stamps is not None else NO_STAMPS
