"""Simulated cards beside a fast meter: their kernel, gain and offset are found, and their readings predicted."""

from dataclasses import dataclass

import numpy as np
import pytest

from tests.attribution.simulator import ORIGIN_NS
from tests.attribution.test_sensor_model import polled
from tests.support.heavy import heavy_unless
from torchwatt.attribution.response_calibration import calibrate_beside_meter, predict_readings
from torchwatt.attribution.sensor_updates import find_sensor_updates
from torchwatt.core.meter import Series

STEP_S = 1e-3  # of the meter: 1 kHz


@dataclass(frozen=True)
class SimulatedCard:
    """What a card says: `gain` times the mean over a window behind a low-pass, and an offset."""

    period_s: float
    window_s: float
    tau_s: float
    gain: float
    offset_w: float
    lag_s: float = 0.002


CARDS = {
    "a boxcar of the whole period": SimulatedCard(0.099964, 0.099964, 0.0, 1.06, -4.0),  # as a 3090
    "a low-pass": SimulatedCard(0.101145, 0.002, 0.012, 0.97, 3.0),  # as an A100
}


@dataclass(frozen=True)
class MeteredCard:
    """A load as the meter saw it, and the polls of the card beside it."""

    meter_ns: np.ndarray
    meter_w: np.ndarray
    power: Series


def record(card: SimulatedCard, seconds: float = 9.0) -> MeteredCard:
    rng = np.random.default_rng(7)
    edges = np.cumsum(rng.uniform(0.03, 0.3, round(seconds / 0.1)))
    t_s = np.arange(0.0, seconds, STEP_S)
    meter_w = np.where(np.searchsorted(edges, t_s) % 2, 310.0, 95.0) + 3 * rng.standard_normal(len(t_s))
    seen_w = meter_w.copy()
    if card.tau_s:
        level, keep = meter_w[0], np.exp(-STEP_S / card.tau_s)
        for i, watts in enumerate(meter_w):
            level = seen_w[i] = keep * level + (1 - keep) * watts
    energy_j = np.concatenate(([0.0], np.cumsum(seen_w) * STEP_S))
    at_s = np.arange(1.0, seconds - 0.5, card.period_s)
    ends_s = np.arange(len(energy_j)) * STEP_S
    upper, lower = at_s - card.lag_s, at_s - card.lag_s - card.window_s
    mean_w = (np.interp(upper, ends_s, energy_j) - np.interp(lower, ends_s, energy_j)) / card.window_s
    meter_ns = np.round(t_s * 1e9).astype(np.int64) + ORIGIN_NS
    return MeteredCard(
        meter_ns, meter_w, polled(at_s, card.gain * mean_w + card.offset_w + 0.5 * rng.standard_normal(len(at_s)))
    )


@pytest.fixture(scope="module", params=heavy_unless(lambda name: name == "a low-pass", CARDS))
def calibrated(request):
    card = CARDS[request.param]
    recorded = record(card)
    return card, recorded, calibrate_beside_meter(recorded.meter_ns, recorded.meter_w, recorded.power)


def test_the_kernel_the_gain_and_the_offset_are_found(calibrated):
    card, _, model = calibrated
    assert model.period_s == pytest.approx(card.period_s, abs=1e-4)
    assert model.gain == pytest.approx(card.gain, rel=0.005)
    assert model.offset_w == pytest.approx(card.offset_w, abs=1.0)
    age_s = model.kernel.lag_s + model.kernel.window_s / 2 + model.kernel.tau_s
    assert age_s == pytest.approx(card.lag_s + card.window_s / 2 + card.tau_s, abs=0.002)
    assert model.kernel.tau_s == pytest.approx(card.tau_s, abs=0.003)


def test_the_model_predicts_what_the_card_said_from_what_the_meter_saw(calibrated):
    _, recorded, model = calibrated
    said_w, predicted_w = predict_readings(model, recorded.meter_ns, recorded.meter_w, recorded.power)
    assert len(said_w) > 60
    assert np.sqrt(np.mean((said_w - predicted_w) ** 2)) <= 1.5  # of 215 W between the load's two powers
    assert model.rms_w <= 1.5


def test_the_period_is_found_from_the_polls_alone(calibrated):
    card, recorded, _ = calibrated
    seen = find_sensor_updates(recorded.power)
    assert seen.locked
    assert seen.period_s == pytest.approx(card.period_s, abs=1e-5)


def test_readings_of_whole_periods_are_the_meters_energy_once_gain_and_offset_are_taken_out(calibrated):
    card, recorded, model = calibrated
    said_w = find_sensor_updates(recorded.power).power_w.mean()
    truth_w = recorded.meter_w[recorded.meter_ns > ORIGIN_NS + 1_000_000_000].mean()
    # Windows that follow each other leave nothing out; a look of 2 in 100 ms leaves most of the load to chance.
    found_w = (said_w - model.offset_w) / model.gain
    assert found_w == pytest.approx(truth_w, rel=0.015 if card.window_s == card.period_s else 0.1)
