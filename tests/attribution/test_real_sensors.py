"""Public recordings of real cards: what NVML said beside what an external meter saw.

`test_beside_meter.py` has the same laws on simulated cards, `test_h100.py` on our own recordings.
"""

import numpy as np
import pytest

from tests.attribution.recordings import beside_meter, polls
from tests.support.heavy import heavy_unless
from tests.support.other_recordings import recordings_of_others
from torchwatt.attribution.design_matrix import WorkRecords, build_design_rows
from torchwatt.attribution.response_calibration import calibrate_beside_meter, calibrate_square_wave, predict_readings
from torchwatt.attribution.sensor_updates import find_sensor_updates

FOLDER = recordings_of_others() / "power" / "gpu_power_benchmark"
# Name, period in ms (of ATTRIBUTION's analysis), largest rms error of the predicted readings in W.
CARDS = [("3090", 99.964, 0.5), ("A100", 101.145, 2.0)]


@pytest.fixture(scope="module")
def folder():
    return FOLDER


class Calibrated(dict):
    """Recording and model of a card, calibrated when a test first asks for it."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __missing__(self, card):
        found = beside_meter(self.folder, f"5050_{card}")
        self[card] = found, calibrate_beside_meter(found.meter_ns, found.meter_w, found.power)
        return self[card]


@pytest.fixture(scope="module")
def calibrated(folder):
    return Calibrated(folder)


# The 3090's recording takes eight seconds to fit.
@pytest.mark.parametrize(("card", "period_ms", "rms_w"), heavy_unless(lambda row: row[0] != "3090", CARDS))
def test_the_sensor_model_predicts_what_nvml_said_from_what_the_meter_saw(calibrated, card, period_ms, rms_w):
    recording, model = calibrated[card]
    said_w, predicted_w = predict_readings(model, recording.meter_ns, recording.meter_w, recording.power)
    assert len(said_w) > 80
    assert np.sqrt(np.mean((said_w - predicted_w) ** 2)) <= rms_w
    assert model.rms_w <= rms_w
    assert model.period_s * 1e3 == pytest.approx(period_ms, abs=0.1)


@pytest.mark.heavy
def test_the_3090s_integrated_readings_are_the_meters_energy_once_its_gain_is_taken_out(calibrated):
    recording, model = calibrated["3090"]
    first_ns, last_ns = recording.edges_ns[0], recording.edges_ns[-1]
    seen = find_sensor_updates(recording.power)
    # Its windows follow each other without a gap: the mean of the readings is the mean of the power.
    looks_ns = seen.at_ns() - round((model.kernel.lag_s + model.kernel.window_s / 2) * 1e9)
    said_w = seen.power_w[(looks_ns > first_ns) & (looks_ns < last_ns)].mean()
    truth_w = recording.meter_w[(recording.meter_ns >= first_ns) & (recording.meter_ns < last_ns)].mean()
    assert (said_w - model.offset_w) / model.gain == pytest.approx(truth_w, rel=0.01)
    assert abs(said_w / truth_w - 1) > 0.04  # what the card itself says


def test_the_a100s_energy_is_the_meters_though_it_looks_at_a_quarter_of_the_time(calibrated):
    """The load's two powers as the kernel sees them, times their time; the mean of the readings is 5 % off."""
    recording, model = calibrated["A100"]
    edges_ns = np.unique(recording.edges_ns)
    edges_ns = edges_ns[: len(edges_ns) // 2 * 2]
    seen = find_sensor_updates(recording.power)
    edges_s = (edges_ns - seen.origin_ns) / 1e9
    pulses = len(edges_s) // 2
    load = WorkRecords(edges_s[0::2], edges_s[1::2], np.zeros(pulses, dtype=np.int64), np.zeros(pulses, dtype=bool), 1)
    kernel = calibrate_square_wave(edges_ns, recording.power).kernel  # its lag is that of this load
    during = (seen.at_s - kernel.lag_s - kernel.window_s > edges_s[0]) & (seen.at_s - kernel.lag_s < edges_s[-1])
    rows = build_design_rows(load, seen.at_s[during], seen.power_w[during], kernel)
    levels_w = np.linalg.lstsq(rows.design, rows.power_w, rcond=None)[0]
    on_s, all_s = float((edges_s[1::2] - edges_s[0::2]).sum()), float(edges_s[-1] - edges_s[0])
    found_w = (float(levels_w @ [on_s, all_s - on_s]) / all_s - model.offset_w) / model.gain
    truth_w = recording.meter_w[(recording.meter_ns >= edges_ns[0]) & (recording.meter_ns < edges_ns[-1])].mean()
    assert found_w == pytest.approx(truth_w, rel=0.01)
    plain_w = (seen.power_w[during].mean() - model.offset_w) / model.gain
    assert abs(plain_w / truth_w - 1) > 0.03


@pytest.mark.parametrize(("card", "period_ms"), [(card, period_ms) for card, period_ms, _ in CARDS])
def test_the_period_is_found_from_the_polls_alone(folder, card, period_ms):
    for name in (f"5050_{card}", f"Transient_Response_{card}_TR"):
        seen = find_sensor_updates(polls(folder, name))
        assert seen.locked
        assert seen.period_s * 1e3 == pytest.approx(period_ms, abs=0.1)


def test_long_recordings_of_polls_alone_lock_as_well(folder):
    a100 = find_sensor_updates(polls(folder, "pwr_update_freq_A100"))
    assert a100.locked
    assert a100.period_s * 1e3 == pytest.approx(101.145, abs=0.01)
    assert find_sensor_updates(polls(folder, "pwr_update_freq_V100")).period_s * 1e3 == pytest.approx(20, abs=0.1)


def test_the_a100_is_a_low_pass(calibrated):
    """A boxcar of 25 ms is only the equivalent width of the A100's filter: it leaves 6 W rms."""
    a100 = calibrated["A100"][1].kernel
    assert a100.tau_s == pytest.approx(0.012, abs=0.002)
    assert a100.window_s < 0.01


@pytest.mark.heavy
def test_the_3090_is_a_boxcar(calibrated):
    rtx3090 = calibrated["3090"][1].kernel
    assert rtx3090.window_s == pytest.approx(0.1, abs=0.005)
    assert rtx3090.tau_s < 0.004


@pytest.mark.parametrize(("card", "tau_ms", "window_ms"), [("3090", 0, 100), ("A100", 12, 2)])
def test_a_square_wave_alone_finds_the_same_kernel(folder, card, tau_ms, window_ms):
    recording = beside_meter(folder, f"5050_{card}")
    edges_ns = np.unique(recording.edges_ns)
    model = calibrate_square_wave(edges_ns, recording.power)
    width_ms = model.kernel.window_s * 1e3 + 2 * model.kernel.tau_s * 1e3
    assert width_ms == pytest.approx(window_ms + 2 * tau_ms, rel=0.25)
