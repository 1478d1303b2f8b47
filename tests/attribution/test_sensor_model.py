import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.attribution.simulator import GPU, ORIGIN_NS, Plan, Sensor, Work, simulate
from tests.support.examples import examples
from torchwatt.attribution.design_matrix import WorkRecords, build_design_rows, stack_rows
from torchwatt.attribution.estimator import Estimator
from torchwatt.attribution.posterior import build_column_groups
from torchwatt.attribution.response_calibration import calibrate_square_wave
from torchwatt.attribution.sensor_response import (
    SENSOR_FAMILIES,
    SensorModel,
    SensorResponse,
    find_sensor_family,
    nominal_response,
)
from torchwatt.attribution.sensor_updates import find_sensor_updates
from torchwatt.core.errors import ConfigError, SensorError
from torchwatt.core.meter import Channel, Series

CHANNEL = Channel(GPU, "power", "power", "W", 1e-3, 5_000_000, "nvml_power_instant")


def records(*rows, columns=2):
    start, end, column = (np.array(values) for values in zip(*rows, strict=True))
    return WorkRecords(start.astype(float), end.astype(float), column, np.zeros(len(start), dtype=bool), columns)


def polled(at_s, value_w, *, poll_s=0.005, seed=0, until_s=None, jitter=0.5):
    rng = np.random.default_rng(seed)
    polls = np.arange(at_s[0] + 1e-3, until_s or at_s[-1], poll_s)
    polls = polls + jitter * poll_s * rng.uniform(-0.5, 0.5, len(polls))
    held = value_w[np.searchsorted(at_s, polls, side="right") - 1]
    t_ns = np.round(polls * 1e9).astype(np.int64) + ORIGIN_NS
    return Series(CHANNEL, t_ns, np.round(held * 1e3), np.zeros_like(t_ns))


def brute(work, at_s, kernel, step_s=1e-5):
    """Filter each column's activity on a fine grid, sample by sample."""
    t = np.arange(0, at_s[-1] + 0.01, step_s)
    out = np.zeros((len(at_s), work.columns))
    for column in range(work.columns):
        active = np.zeros(len(t))
        for s, e, c in zip(work.start_s, work.end_s, work.column, strict=True):
            if c == column:
                active += (t + step_s / 2 >= s) & (t + step_s / 2 < e)
        if kernel.tau_s:
            level, keep = 0.0, np.exp(-step_s / kernel.tau_s)
            for i, now in enumerate(active):
                level = keep * level + (1 - keep) * now
                active[i] = level
        total = np.concatenate(([0.0], np.cumsum(active) * step_s))
        edges = np.arange(len(total)) * step_s
        end = at_s - kernel.lag_s
        mean = np.interp(end, edges, total) - np.interp(end - kernel.window_s, edges, total)
        out[:, column] = mean / kernel.window_s
    return out


@pytest.mark.parametrize(
    "kernel", [SensorResponse(0.025), SensorResponse(0.002, 0.012), SensorResponse(0.03, 0.004, 0.007)]
)
def test_rows_are_what_filtering_sample_by_sample_gives(kernel):
    work = records((0.30, 0.31, 0), (0.31, 0.325, 1), (0.32, 0.34, 0), (0.36, 0.3601, 1))
    at_s = np.array([0.312, 0.33, 0.345, 0.37, 0.40])
    rows = build_design_rows(work, at_s, np.zeros(5), kernel)
    np.testing.assert_allclose(rows.design[:, :2], brute(work, at_s, kernel), atol=2e-3)


@examples(20)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=12),
    st.sampled_from(
        [SensorResponse(0.010), SensorResponse(0.025, 0.0, 0.003), SensorResponse(0.005, 0.004), SensorResponse(0.1)]
    ),
)
def test_a_row_adds_up_to_one_and_reading_in_parts_changes_nothing(spans, kernel):
    work = records(*((a * 1e-3, (a + n) * 1e-3, c) for a, n, c in spans), columns=3)
    at_s = np.arange(1, 12) * 0.0101
    whole = build_design_rows(work, at_s, at_s, kernel)
    np.testing.assert_allclose(whole.design.sum(axis=1), 1.0)
    parts = stack_rows(
        [build_design_rows(work, at_s[:4], at_s[:4], kernel), build_design_rows(work, at_s[4:], at_s[4:], kernel)]
    )
    np.testing.assert_allclose(parts.design, whole.design, atol=1e-6)


def test_the_slope_of_a_row_is_its_derivative():
    rng = np.random.default_rng(1)
    edges = np.sort(rng.uniform(0, 1, 40))
    work = records(*((a, b, i % 2) for i, (a, b) in enumerate(pairwise(edges))))
    at_s = np.linspace(0.4, 0.9, 20)
    kernel, step_s = SensorResponse(0.02, 0.01), 1e-6
    here, later = (build_design_rows(work, at_s + d, at_s, kernel) for d in (0.0, step_s))
    np.testing.assert_allclose((later.design - here.design) / step_s, here.slope, atol=1e-2)


@examples(15)
@given(st.floats(0.0195, 0.13), st.floats(0.002, 0.008), st.integers(0, 1000))
def test_the_grid_is_locked_to_a_tenth_of_a_millisecond(period_s, poll_s, seed):
    assume(period_s > 3 * poll_s)  # sensors that are polled more rarely are not always locked, and then say so
    rng = np.random.default_rng(seed)
    at_s = 0.05 + np.arange(300) * period_s
    shaken_s = at_s + 5e-5 * rng.standard_normal(300)
    seen = find_sensor_updates(polled(shaken_s, rng.uniform(100, 300, 300), poll_s=poll_s, seed=seed))
    assert seen.locked
    assert seen.period_s == pytest.approx(period_s, abs=1e-5)
    first_s = seen.at_s[0] + (seen.origin_ns - ORIGIN_NS) / 1e9
    assert min(abs(at_s - first_s)) < 5e-4


def test_a_repeated_value_is_still_a_publication():
    rng = np.random.default_rng(0)
    value_w = rng.choice([100.0, 101.0], 400)  # half of the publications change nothing
    seen = find_sensor_updates(polled(0.05 + np.arange(400) * 0.1, value_w))
    assert seen.locked
    assert len(seen) >= 397
    assert seen.period_s == pytest.approx(0.1, abs=1e-5)


def test_a_sensor_without_a_clock_is_dated_by_its_polls_and_says_so():
    rng = np.random.default_rng(0)
    at_s = np.cumsum(rng.uniform(0.05, 0.15, 300))
    seen = find_sensor_updates(polled(at_s, rng.uniform(100, 300, 300)))
    assert not seen.locked
    assert seen.timing_sd_s == pytest.approx(0.005 / np.sqrt(12), rel=0.4)


def test_a_frozen_sensor_publishes_nothing():
    at_s = np.arange(300) * 0.1
    assert find_sensor_updates(polled(at_s, np.full(300, 120.0))) is None


def square_wave(sensor, *, on_s=0.037, off_s=0.036, minutes=0.4):
    plan = Plan((Work("load", "forward", "f", on_s, 300.0, gap_s=0.0),), pause_s=off_s, duration_rel=0.02)
    simulated = simulate(plan, sensor, minutes=minutes, seed=4)
    edges_ns = np.stack((simulated.activity.start_ns, simulated.activity.end_ns), axis=1).ravel()
    return calibrate_square_wave(edges_ns, simulated.recording.series[0])


@pytest.mark.parametrize(
    ("sensor", "window_s", "tau_s"),
    [
        (Sensor(lag_s=0.004), 0.025, 0.0),
        (Sensor(window_s=0.002, tau_s=0.012, lag_s=0.001), 0.002, 0.012),
        pytest.param(Sensor(window_s=0.1, lag_s=0.02, noise_rel=0.002), 0.1, 0.0, marks=pytest.mark.heavy),
        pytest.param(Sensor(period_s=0.02, window_s=0.01, poll_s=0.002), 0.01, 0.0, marks=pytest.mark.heavy),
    ],
)
def test_a_square_wave_finds_period_window_low_pass_and_lag(sensor, window_s, tau_s):
    model = square_wave(sensor)
    assert model.period_s == pytest.approx(sensor.period_s, abs=1e-4)
    assert model.kernel.window_s == pytest.approx(window_s, abs=0.004)
    assert model.kernel.tau_s == pytest.approx(tau_s, abs=0.0025)
    assert model.kernel.lag_s == pytest.approx(sensor.lag_s, abs=0.0025)
    assert "square wave" in model.source


def test_a_sensor_that_ignores_the_load_is_not_calibrated():
    rng = np.random.default_rng(0)
    power = polled(np.arange(1, 300) * 0.1, rng.uniform(100, 110, 299))
    edges_ns = ORIGIN_NS + np.arange(200) * 73_000_000 + 5 * 10**9
    with pytest.raises(SensorError, match="do not follow the load"):
        calibrate_square_wave(edges_ns, power)


def test_a_sensor_model_survives_json_and_a_broken_one_is_named():
    model = SensorModel(SensorResponse(0.025, 0.001, 0.002), 0.1, 0.4, "a square wave", 0.95, -2.0)
    assert SensorModel.from_json(json.loads(json.dumps(model.to_json()))) == model
    broken = {**model.to_json(), "kernel": {"window_s": "wide"}}
    with pytest.raises(ConfigError, match="calibrate again"):
        SensorModel.from_json(broken)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA A10", "ampere"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA GeForce RTX 3090", "ampere"),
        ("NVIDIA GeForce RTX 4090", "ada"),
        ("Tesla V100-SXM2-16GB", "volta"),
        ("NVIDIA B200", None),
    ],
)
def test_a_family_is_known_by_the_cards_name(model, family):
    assert find_sensor_family(model) == family


def test_nominal_kernels_follow_the_field_and_the_architecture():
    assert nominal_response("a100", "nvml_power_instant", 0.1)[0] == SENSOR_FAMILIES["a100"]
    assert nominal_response("ada", "nvml_power", 0.1)[0].window_s == 1.0
    assert nominal_response("volta", "nvml_power", 0.02)[0].window_s == 0.01
    assert nominal_response(None, "nvml_power_instant", 0.05)[0].window_s == 0.05
    with pytest.raises(ConfigError, match="choose one of"):
        nominal_response("z80", "nvml_power_instant", 0.1)


def rows_of_world(seed=0, count=900, columns=6):
    rng = np.random.default_rng(seed)
    power_w = np.append(rng.uniform(120, 650, columns), 70.0)
    edges = np.concatenate(([0.0], np.cumsum(rng.uniform(0.002, 0.02, 12000))))
    column = rng.integers(0, columns + 1, 12000)
    busy = column < columns
    work = WorkRecords(edges[:-1][busy], edges[1:][busy], column[busy], np.zeros(busy.sum(), dtype=bool), columns)
    at_s = 1.0 + np.arange(count) * 0.1
    rows = build_design_rows(work, at_s, at_s, SensorResponse(0.025))
    said_w = rows.design @ power_w + 3 * rng.standard_normal(count)
    return replace(rows, power_w=said_w), power_w


def solved(parts, columns=6):
    estimator = Estimator(build_column_groups(()), columns)
    for part in parts:
        estimator.add(part)
    return estimator.solve()


def test_readings_may_come_in_chunks():
    rows, power_w = rows_of_world()
    whole = solved([rows])
    chunks = solved([rows.take(slice(i, i + 50)) for i in range(0, 900, 50)])
    np.testing.assert_allclose(chunks.posterior.power_w, whole.posterior.power_w, rtol=1e-9)
    np.testing.assert_allclose(whole.posterior.power_w, power_w, rtol=0.03)


def test_old_readings_are_folded_and_nothing_is_lost(monkeypatch):
    """Memory stays bounded: at most 200 readings of 7 numbers are open."""
    rows, power_w = rows_of_world()
    whole = solved([rows])
    monkeypatch.setattr("torchwatt.attribution.estimator.MAX_OPEN_NUMBERS", 200 * 7)
    folded = solved([rows.take(slice(i, i + 50)) for i in range(0, 900, 50)])
    assert folded.rows == whole.rows
    np.testing.assert_allclose(folded.posterior.power_w, power_w, rtol=0.03)
    sd = np.sqrt(np.diag(whole.posterior.robust))
    assert np.all(np.abs(folded.posterior.power_w - whole.posterior.power_w) < 2 * sd)
    assert np.sqrt(np.diag(folded.posterior.robust)) == pytest.approx(sd, rel=0.5)
