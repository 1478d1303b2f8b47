"""One clock of ends of steps for each CUDA device that a program uses, paid for by the budget."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
import torch

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.budget import Budget
from torchwatt.tracing.devices.cuda_events import CudaEvents
from torchwatt.tracing.devices.stamps import Stamps
from torchwatt.tracing.own_time import own_time

STAMP_SHARE = 0.1  # of the budget; where steps are shorter, some go without a stamp

own_ns = own_time()


class Clocks:
    """Stamps ends of steps on whatever device is current."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._stamps: dict[int, Stamps] = {}
        self._rest = 0  # steps that go without
        self._cost_ns = 0.0  # moving average: now and then a stamp comes with an anchor

    def step_ended(self, budget: Budget, step_ns: float) -> None:
        """Stamp the end of a step, unless that is too dear for so short a step."""
        if self._rest > 0 or budget.share <= 0:
            self._rest -= 1
            return
        began = own_ns()
        index = torch.cuda.current_device()
        if index not in self._stamps:
            self._stamps[index] = Stamps(CudaEvents(index), self._clock_ns)
        self._stamps[index].mark()
        cost_ns = own_ns() - began
        budget.pay("fixed", cost_ns)
        self._cost_ns += (cost_ns - self._cost_ns) * (0.05 if self._cost_ns else 1.0)
        self._rest = ceil(self._cost_ns / max(STAMP_SHARE * budget.share * step_ns, 1.0)) - 1 if step_ns else 0

    def only(self) -> tuple[IntArray, FloatArray] | None:
        """Return `known` of the one device that was used; None if there are more, or none."""
        return self.known(f"gpu:{next(iter(self._stamps))}") if len(self._stamps) == 1 else None

    def known(self, device: str) -> tuple[IntArray, FloatArray]:
        """Return the host's ends of steps and how far behind the device "gpu:<torch's number>" was, in ns."""
        index = int(device.partition(":")[2]) if device.partition(":")[2].isdigit() else -1
        stamps = self._stamps.get(index)
        if stamps is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        stamps.settle()
        return stamps.known()
