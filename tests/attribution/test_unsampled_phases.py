"""A total from integrated power, without a counter: the truth lies inside its interval, whatever the sensor missed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.worlds import MS, power_channel
from torchwatt.core.meter import Meter, Recording, Series
from torchwatt.core.terms import Domain
from torchwatt.core.trace import EMPTY_TRACE, trace_from_spans
from torchwatt.reports.report_builder import RunInterval, RunOutcome, build_report
from torchwatt.reports.run_options import RunOptions

pytestmark = pytest.mark.slow

GPU = Domain("gpu", 0)
ORIGIN_NS = 7_000_000_000_000
LIMIT_W = 700.0


@dataclass(frozen=True)
class Load:
    """A device that draws `high_w` for a part of every period, and `low_w` for the rest of it."""

    period_s: float
    duty: float
    high_w: float
    low_w: float
    phase: float = 0.0

    def energy_j(self, t_s):
        """Return joules since instant 0."""
        whole, part = np.divmod(np.asarray(t_s) / self.period_s + self.phase, 1.0)
        busy_s = (whole * self.duty + np.minimum(part, self.duty) - min(self.phase, self.duty)) * self.period_s
        return self.low_w * np.asarray(t_s) + (self.high_w - self.low_w) * busy_s


@dataclass(frozen=True)
class Sensor:
    update_s: float
    window_s: float  # 0: instantaneous
    first_s: float = 0.0
    noise_w: float = 1.0


def report_of(load: Load, sensor: Sensor, seconds: float, *, steps: bool = True, seed: int = 0):
    """Meter a load from 1 s on; a second before and after it the same load goes on."""
    rng = np.random.default_rng(seed)
    start_s, end_s = 1.0, 1.0 + seconds
    poll_s = np.arange(0.0, end_s + 1.0, 0.02) + rng.uniform(-0.008, 0.008, len(np.arange(0.0, end_s + 1.0, 0.02)))
    tick = np.floor((poll_s - sensor.first_s) / sensor.update_s).astype(int)
    at_s = sensor.first_s + tick * sensor.update_s
    window_s = sensor.window_s or 1e-6
    watts = (load.energy_j(at_s) - load.energy_j(at_s - window_s)) / window_s
    noise = rng.normal(0.0, sensor.noise_w, int(tick.max() - tick.min()) + 1)[tick - tick.min()]
    t_ns = ORIGIN_NS + np.round(poll_s * 1e9).astype(np.int64)
    raw = np.round(np.maximum(watts + noise, 1.0) * 1e3)
    channel = replace(power_channel(domain=GPU), period_ns=20 * MS)
    facts = (("power_limit_w", str(LIMIT_W)),)
    meter = Meter(GPU, (channel,), "measured", "device", "NVIDIA SimGPU", accuracy_rel=(-0.05, 0.05), facts=facts)
    recording = Recording((meter,), (Series(channel, t_ns, raw, np.zeros_like(t_ns)),))
    bounds = RunInterval(ORIGIN_NS + 10**9, ORIGIN_NS + round(end_s * 1e9), 1_800_000_000 * 10**9)
    trace = EMPTY_TRACE
    if steps:
        first, last = np.ceil(start_s / load.period_s + load.phase), np.floor(end_s / load.period_s + load.phase)
        edges = (np.arange(first, last + 1) - load.phase) * load.period_s
        edges_ns = (ORIGIN_NS + np.round(edges * 1e9)).astype(np.int64).tolist()
        trace = trace_from_spans((), steps=list(pairwise(edges_ns)))
    report = build_report("x", RunOptions(), bounds, recording, trace, RunOutcome("complete"))
    return report, float(load.energy_j(end_s) - load.energy_j(start_s))


def holds(load, sensor, seconds, **kinds):
    report, truth_j = report_of(load, sensor, seconds, **kinds)
    lo_j, hi_j = report.systematic_j
    assert lo_j <= truth_j <= hi_j, (report.energy_j, (lo_j, hi_j), truth_j, report.ledgers[0].sentence)
    return report, truth_j


loads = st.builds(
    Load,
    st.one_of(st.floats(0.001, 10.0), st.sampled_from([0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0])),
    st.floats(0.1, 0.9),
    st.floats(150.0, LIMIT_W),
    st.floats(20.0, 150.0),
    st.floats(0.0, 0.999),
)
updates = st.one_of(st.floats(0.02, 1.0), st.sampled_from([0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
lengths = st.floats(0.5, 6.0)


@examples(12)
@given(loads, updates, st.sampled_from([0, 1]), st.floats(0.0, 0.999), lengths, st.integers(0, 9))
@example(Load(0.1, 0.5, 600.0, 100.0), 0.1, 0, 0.25, 6.0, 0)
@example(Load(0.1, 0.5, 600.0, 100.0), 0.1, 0, 0.75, 6.0, 0)
@example(Load(0.05, 0.2, 700.0, 30.0), 0.1, 0, 0.5, 2.0, 0)
def test_the_truth_lies_inside_the_interval_of_any_load_whose_steps_are_known(
    load, update_s, averages, first, seconds, seed
):
    if load.period_s * 4 > seconds:  # of fewer steps nobody can say that they repeat
        load = replace(load, period_s=seconds / 6)
    holds(load, Sensor(update_s, update_s * averages, first * update_s), seconds, seed=seed)


@examples(12)
@given(
    st.integers(1, 12), st.integers(1, 5), st.floats(0.1, 0.9), st.sampled_from([0.02, 0.1, 0.25, 1.0]),
    st.floats(0.0, 0.999), st.floats(3.0, 6.0),
)  # fmt: skip
def test_so_it_does_where_steps_are_locked_to_the_sensor(parts, times, duty, update_s, first, seconds):
    load = Load(update_s * times / parts, duty, 600.0, 80.0)
    if load.period_s * 4 > seconds:
        load = replace(load, period_s=update_s / parts)
    holds(load, Sensor(update_s, 0.0, first * update_s), seconds)


@examples(10)
@given(st.floats(100.0, 700.0), updates, st.floats(0.0, 0.999), st.floats(2.0, 12.0), st.integers(0, 9))
def test_a_constant_load_keeps_a_narrow_interval(watts, update_s, first, seconds, seed):
    load = Load(0.1, 0.5, watts, watts)
    report, _ = holds(load, Sensor(update_s, 0.0, first * update_s), seconds, steps=False, seed=seed)
    lo_j, hi_j = report.systematic_j
    assert hi_j - lo_j < 0.15 * report.energy_j + 2 * 8.0 * max(update_s, 0.1)
    assert report.status == "complete"


def test_a_run_in_step_with_its_sensor_is_partial_and_says_so():
    report, truth_j = report_of(Load(0.1, 0.5, 600.0, 100.0), Sensor(0.1, 0.0, 0.025), 40.0)
    assert report.energy_j > 1.5 * truth_j
    assert report.status == "partial"
    (told,) = [event for event in report.events if event.code == "PHASES_UNSEEN"]
    assert "never sampled" in told.message
    assert "never sampled" in report.ledgers[0].sentence


def test_steps_that_drift_past_the_sensor_are_all_seen():
    report, truth_j = report_of(Load(0.1037, 0.5, 600.0, 100.0), Sensor(0.1, 0.0, 0.025), 40.0)
    lo_j, hi_j = report.systematic_j
    assert lo_j <= truth_j <= hi_j
    assert hi_j - lo_j < 0.4 * truth_j, (report.energy_j, lo_j, hi_j)
    assert report.status == "complete"


@pytest.mark.parametrize(("sensor", "seconds"), [("nvml_power_average", 0.5), ("nvml_power", 0.5), ("nvml_power", 2.0)])
def test_a_burst_shorter_than_the_window_of_its_sensor_lies_inside(sensor, seconds):
    """500 W for half a second, seen through a mean over one second."""
    t_ns = ORIGIN_NS + np.arange(0, 6000, 20) * MS
    at_s = (t_ns - ORIGIN_NS) / 1e9
    joules = np.interp(at_s, [0, 3, 3 + seconds, 9], [0, 180, 180 + 500 * seconds, 180 + 500 * seconds + 360])
    earlier = np.interp(at_s - 1, [0, 3, 3 + seconds, 9], [0, 180, 180 + 500 * seconds, 180 + 500 * seconds + 360])
    raw = np.round((joules - np.where(at_s < 1, joules - 60, earlier)) * 1e3)
    channel = power_channel(domain=GPU, sensor=sensor)
    meter = Meter(GPU, (channel,), "measured", "device", "GPU", accuracy_rel=(-0.05, 0.05))
    recording = Recording((meter,), (Series(channel, t_ns, raw, np.zeros_like(t_ns)),))
    bounds = RunInterval(ORIGIN_NS + 3 * 10**9, ORIGIN_NS + round((3 + seconds) * 1e9), 1)
    report = build_report("x", RunOptions(), bounds, recording, EMPTY_TRACE, RunOutcome("complete"))
    lo_j, hi_j = report.systematic_j
    assert lo_j <= 500 * seconds <= hi_j, (lo_j, report.energy_j, hi_j)


@examples(20)
@given(
    st.floats(2.5, 120.0),
    st.lists(st.tuples(st.floats(20.0, 650.0), st.floats(0.0, 1.0)), min_size=3, max_size=12),
    st.floats(0.0, 0.45),
    st.floats(0.55, 1.0),
)
@example(60.0, [(20.0, 1.0), (200.0, 0.0), (200.0, 1.0)], 0.1, 0.4)
@example(60.0, [(20.0, 0.0), (200.0, 1.0)] * 5, 0.0, 1.0)
@example(60.0, [(20.0, 1.0), (200.0, 1.0)] * 6, 0.0, 1.0)
def test_between_readings_that_are_seconds_apart_power_may_be_anything_from_one_to_the_other(
    every_s, readings, first, last
):
    """Each interval spends a drawn part of its time at the higher of its two readings and the rest at the lower."""
    t_s = every_s * np.arange(len(readings))
    watts = np.round([w for w, _ in readings], 3)
    start_s, end_s = first * t_s[-1], last * t_s[-1]
    truth_j = 0.0
    for (at_s, a_w, part), (after_s, b_w, _) in pairwise(zip(t_s, watts, [p for _, p in readings], strict=True)):
        seconds = max(min(after_s, end_s) - max(at_s, start_s), 0.0)
        truth_j += seconds * (part * max(a_w, b_w) + (1 - part) * min(a_w, b_w))
    channel = replace(power_channel(domain=GPU, sensor="nvml_power"), period_ns=int(every_s * 1e9))
    t_ns = ORIGIN_NS + np.round(t_s * 1e9).astype(np.int64)
    meter = Meter(GPU, (channel,), "measured", "device", "GPU", accuracy_rel=(0.0, 0.0))
    recording = Recording((meter,), (Series(channel, t_ns, watts * 1e3, np.zeros_like(t_ns)),))
    bounds = RunInterval(ORIGIN_NS + round(start_s * 1e9), ORIGIN_NS + round(end_s * 1e9), 1)
    report = build_report("x", RunOptions(), bounds, recording, EMPTY_TRACE, RunOutcome("complete"))
    lo_j, hi_j = report.systematic_j
    assert lo_j * (1 - 1e-9) <= truth_j <= hi_j * (1 + 1e-9), (lo_j, report.energy_j, hi_j)
    assert f"power was read every {every_s:.3g} s" in report.ledgers[0].sentence
    wide = [event for event in report.events if event.code == "READ_SELDOM"]
    assert len(wide) == (hi_j - report.energy_j > 0.1 * report.energy_j)
