"""Models of CPU and memory power for machines without meters of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.readers.cputime import Kin, Work, family, machine

# Share of nameplate power at 0, 10, 50 and 100 % load. Teads engineering, "Building an AWS EC2 Carbon Emissions
# Dataset", 2021; also used by the Impact Framework, whose docs say that it does not generalise well.
CURVE = ((0.0, 0.12), (0.1, 0.32), (0.5, 0.75), (1.0, 1.02))
# 3 W per 8 GB, the constant of codecarbon's older versions.
RAM_W_PER_GB = 0.375
_MIN_INTERVAL_NS = 20_000_000  # /proc/stat has a resolution of 10 ms


def machine_power_w(load: float, nameplate_w: float) -> float:
    """Return the watts of the CPUs at a load of 0 to 1, linear between the points of CURVE."""
    load = min(max(load, 0.0), 1.0)
    for (u0, f0), (u1, f1) in pairwise(CURVE):
        if load <= u1:
            return nameplate_w * (f0 + (f1 - f0) * (load - u0) / (u1 - u0))
    return nameplate_w * CURVE[-1][1]


def share_w(
    *, process_s: float, busy_s: float, interval_s: float, cpus: int, nameplate_w: float
) -> tuple[float, float]:
    """Return one process's watts and the machine's load over an interval.

    The share is P(load) x process CPU seconds / busy CPU seconds, so that the shares of all processes add up to P(load)
    and an idle process gets 0 W. Busy time has a resolution of 10 ms and may lag behind the process's clock: at least
    the process's CPU seconds are taken.
    """
    busy_s = max(busy_s, process_s)
    load = min(busy_s / (interval_s * cpus), 1.0)
    share = process_s / busy_s if busy_s > 0 else 0.0
    return machine_power_w(load, nameplate_w) * share, load


class ModelledReader:
    """Reads modelled watts and their inputs.

    Spec: `pid`, `nameplate_w`, `cpus`. Reading `cpu/power` updates the two other CPU values; the power is the mean
    since the previous read. Reading `ram/power` updates `ram/rss`.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        *,
        kin: Kin | None = None,
        work: Work | None = None,
    ) -> None:
        self._nameplate_w = float(spec["nameplate_w"])
        self._cpus = int(spec["cpus"])
        self._clock_ns = clock_ns
        self._family = kin or family(int(spec["pid"]))
        self._machine = work or machine()
        self._previous: tuple[int, float, float] | None = None
        self._load = self._power_w = self._rss = math.nan

    def read(self, key: str) -> float:
        """Return watts, a load of 0 to 1, CPU seconds or bytes, depending on the key."""
        if key == "cpu/power":
            return self._read_power()
        if key == "cpu/utilization":
            return self._load
        if key == "cpu/process_cpu":
            return self._previous[1] if self._previous else math.nan
        if key == "ram/power" or math.isnan(self._rss):
            self._rss = self._family.rss_bytes()
        return self._rss if key == "ram/rss" else self._rss / 1e9 * RAM_W_PER_GB

    def _read_power(self) -> float:
        sample = (self._clock_ns(), self._family.cpu_s(), self._machine.busy_s())
        if self._previous is None:
            self._previous = sample
            return math.nan
        interval_ns = sample[0] - self._previous[0]
        if interval_ns < _MIN_INTERVAL_NS:  # shorter than the resolution of /proc/stat: the next read covers it
            return math.nan
        self._power_w, self._load = share_w(
            process_s=sample[1] - self._previous[1],
            busy_s=sample[2] - self._previous[2],
            interval_s=interval_ns / NS_PER_S,
            cpus=self._cpus,
            nameplate_w=self._nameplate_w,
        )
        self._previous = sample
        return self._power_w

    def close(self) -> None:
        """Close the files of /proc."""
        self._family.close()
        self._machine.close()
