"""A machine whose watts follow what a training does, and the truth about it."""

from __future__ import annotations

import time
from itertools import pairwise
from math import fsum, isclose

import torch
from torch import nn

import torchwatt as tw
from tests.support.powercap import FakePowercap

STATIC_W, TRAIN_W, EVALUATE_W, DRAM_W = 20.0, 100.0, 60.0, 5.0
LATE = 1.005  # what is logged while a run goes on, over its report: a reading that came late moves the end of either
ZONES = {"intel-rapl:0": ("package-0", STATIC_W), "intel-rapl:0:0": ("dram", DRAM_W)}


class Busy(nn.Module):
    """Keeps the machine busy for a while in each forward pass, at other watts when it evaluates."""

    def __init__(self, world: FakePowercap, seconds: float) -> None:
        super().__init__()
        self.world, self.seconds = world, seconds
        self.forwards = 0
        self.fails_at: dict[int, BaseException] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.forwards += 1
        if self.training and self.forwards in self.fails_at:
            raise self.fails_at[self.forwards]
        self.world.set("package-0", TRAIN_W if self.training else EVALUATE_W)
        time.sleep(self.seconds)
        self.world.set("package-0", STATIC_W)
        return x


class World(FakePowercap):
    """Knows how late its own counters were published: what a meter says of an edge cannot be better than that."""

    def __init__(self, *args, **given) -> None:
        self.published_ns: list[int] = []
        super().__init__(*args, **given)

    def _publish(self) -> None:
        super()._publish()
        self.published_ns.append(time.monotonic_ns())

    def late_j(self, report) -> float:
        """Return the joules by which a window's two edges may be off: counters published late, or read late."""
        inside = [t for t in self.published_ns if report.start_ns <= t <= report.end_ns]
        gaps_ns = [max(b - a for a, b in pairwise(times)) for times in (inside, *(c.t_ns for c in report.curves))]
        return 2e-9 * int(sum(sorted(gaps_ns)[-2:])) * (TRAIN_W - STATIC_W)


def truth_j(world: FakePowercap, start_ns: int, end_ns: int) -> float:
    """Return the true joules of everything that is metered."""
    return fsum(world.energy_j(name, start_ns, end_ns) for name in ("package-0", "dram"))


def parts_j(run):
    """Return the joules of the run as its windows and epochs have them, every part once."""
    table = run.epochs
    return fsum([*table.train_j, *table.evaluation_j, *table.checkpoint_j])


def assert_every_part_is_true(run: tw.Run, world: World) -> None:
    """Compare each window, and the whole run, with what the machine really used."""
    late_j = world.late_j(run.report)
    for window in run.report.windows:
        true_j = truth_j(world, window.start_ns, window.end_ns)
        assert isclose(window.energy_j, true_j, rel_tol=0.05, abs_tol=late_j), window
    assert isclose(run.energy_j, truth_j(world, run.report.start_ns, run.report.end_ns), rel_tol=0.02)
