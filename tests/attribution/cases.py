"""The twelve acceptance cases of the estimator, as plans and sensors of the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tests.attribution.simulator import Plan, Sensor, Simulated, Work, simulate

A100 = Sensor()
ADA = Sensor(model="NVIDIA GeForce RTX 4090", window_s=0.1)
VOLTA = Sensor(model="Tesla V100-SXM2-16GB", kind="nvml_power", period_s=0.02, window_s=0.01, poll_s=0.002)
AVERAGE = Sensor(model="NVIDIA A100-PCIE-40GB", kind="nvml_power_average", window_s=1.0)


def distinct(seed: int, *, layers: int = 40, lo_w: float = 120.0, hi_w: float = 650.0) -> Plan:
    """Layers that share nothing: forward 20 us to 5 ms, backward twice that, powers of their own."""
    rng = np.random.default_rng([seed, 1])
    seconds = np.exp(rng.uniform(np.log(20e-6), np.log(5e-3), layers))
    seconds *= 0.120 / (3 * seconds.sum())
    watts = rng.uniform(lo_w, hi_w, (2, layers))
    forward = [Work(f"layer{i}", "forward", f"f{i}", seconds[i], watts[0, i]) for i in range(layers)]
    backward = [Work(f"layer{i}", "backward", f"b{i}", 2 * seconds[i], watts[1, i]) for i in range(layers)]
    return Plan((*forward, *backward[::-1]))


def gpt(seed: int, *, blocks: int = 6, types: int = 8, minimum_s: float = 5e-5) -> Plan:
    """Blocks of layers: a type's kernels are the same work in every block and draw nearly the same power."""
    rng = np.random.default_rng([seed, 2])
    works: dict[str, list[Work]] = {"forward": [], "backward": []}
    seconds = np.exp(rng.uniform(np.log(minimum_s), np.log(5e-3), types))
    seconds *= 0.120 / (3 * blocks * seconds.sum())
    watts = rng.uniform(120, 650, (2, types))
    for block in range(blocks):
        for kind in range(types):
            for phase, row, times in (("forward", 0, 1), ("backward", 1, 2)):
                own_w = watts[row, kind] * (1 + 0.02 * rng.standard_normal())
                name = f"blocks.{block}.op{kind}"
                works[phase].append(Work(name, phase, f"{phase}{kind}", times * seconds[kind], own_w))
    return Plan((*works["forward"], *works["backward"][::-1]))


def decode(seed: int, *, layers: int = 32) -> Plan:
    """Inference steps of 15 ms, shorter than a sensor's window; such kernels wait for memory, so powers differ less."""
    rng = np.random.default_rng([seed, 3])
    seconds = np.exp(rng.uniform(np.log(50e-6), np.log(1.5e-3), layers))
    seconds *= 0.0135 / seconds.sum()
    watts = rng.uniform(200, 550, layers)
    works = tuple(Work(f"layer{i}", "forward", f"f{i}", seconds[i], watts[i]) for i in range(layers))
    return Plan(works, pause_s=0.001)


def locked(seed: int, dither_s: float = 0.0) -> Plan:
    """A step that begins every 100 ms, as the sensor does."""
    plan = distinct(seed)
    scale = 0.088 / sum(w.seconds for w in plan.works)
    works = tuple(replace(w, seconds=w.seconds * scale) for w in plan.works)
    return replace(plan, works=works, period_s=0.1, dither_s=dither_s)


@dataclass(frozen=True)
class Case:
    """`ew` and `top10` are goals: energy-weighted relative error, of all classes and of the ten largest."""

    name: str
    what: str
    plan: Callable[[int], Plan]
    sensor: Sensor
    minutes: float
    ew: float
    top10: float | None = None
    of_time_share: float | None = None  # goal relative to time share
    flagged: bool = False

    def run(self, seed: int) -> Simulated:
        return simulate(self.plan(seed), self.sensor, minutes=self.minutes, seed=seed)


def _low_pass(sensor: Sensor) -> Sensor:
    return replace(sensor, window_s=0.002, tau_s=0.012, noise_rel=0.003)


CASES = (
    Case("T1", "40 layers, A100, 1 % noise, 1 min", distinct, A100, 1, 0.08, 0.03),
    Case("T2", "12 ms low-pass told as 25 ms, .3 %, 2 min", distinct, _low_pass(A100), 2, 0.06, 0.015),
    Case("T3", "gpt48, Ada, 3 min", gpt, ADA, 3, 0.11, 0.04),
    Case("T4", "locked, 2 min", locked, A100, 2, 9.9, None, 1.02, flagged=True),
    Case("T5", "locked, 1 ms dither, 2 min", lambda s: locked(s, 1e-3), A100, 2, 0.17, 0.08),
    Case("T6", "clock 12 ms off, 2 min", distinct, replace(A100, clock_s=0.012), 2, 0.06, 0.02),
    Case("T7", "decode32, 3 min", decode, A100, 3, 0.11, 0.07),
    Case("T8", "narrow 300-480 W, 2 min", lambda s: distinct(s, lo_w=300, hi_w=480), A100, 2, 0.06, 0.03, 0.6),
    Case("T9", "1 s average, 1 min", distinct, AVERAGE, 1, 9.9, None, 1.05, flagged=True),
    Case("T10", "Volta 10/20, 1 min", distinct, VOLTA, 1, 0.03, 0.01),
    Case("T11", "30 % side stream, 2 min", lambda s: replace(distinct(s), overlap=0.3), A100, 2, 0.08, 0.045),
    Case("T12", "gain .95, offset -3 W, 2 min", distinct, replace(A100, gain=0.95, offset_w=-3.0), 2, 0.06, 0.02),
)
