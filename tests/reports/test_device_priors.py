from dataclasses import replace

import pytest

from torchwatt.attribution.device_fit import NO_PRIORS
from torchwatt.attribution.sensor_response import SensorModel, SensorResponse
from torchwatt.core.meter import Channel, Meter
from torchwatt.core.terms import POWER_SAMPLES, Domain, Slot
from torchwatt.core.trace import EMPTY_TRACE, ReplayedPower, Span, trace_from_spans
from torchwatt.reports.report_builder import device_priors, load_sensor_models
from torchwatt.sensors.calibrations import calibration_key, calibrations_file, save_calibration

GPU = Domain("gpu", 0)
POWER = Channel(GPU, "power", "power", "W", 1e-3, 20_000_000, "nvml_power_instant")
METER = Meter(GPU, (POWER,), "measured", "device", "NVIDIA A100", facts=(("uuid", "GPU-1"), ("driver", "550")))
MODEL = SensorModel(SensorResponse(0.002, 0.012), 0.101, 1.5, "a square wave of 80 pulses")


def test_a_calibration_that_was_kept_is_used_for_its_device(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHWATT_CALIBRATIONS", str(tmp_path))
    assert load_sensor_models([METER]) == ({}, [])
    save_calibration(calibrations_file(), calibration_key(METER, POWER.sensor), MODEL.to_json())
    assert load_sensor_models([METER]) == ({"gpu:0/power": MODEL}, [])


def test_the_drivers_own_samples_have_a_calibration_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHWATT_CALIBRATIONS", str(tmp_path))
    fine = replace(POWER, name="power_fine", sensor=POWER_SAMPLES)
    save_calibration(calibrations_file(), calibration_key(METER, POWER_SAMPLES), MODEL.to_json())
    both = replace(METER, channels=(POWER, fine))
    assert load_sensor_models([both]) == ({"gpu:0/power_fine": MODEL}, [])


def test_a_damaged_calibration_is_said_and_costs_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHWATT_CALIBRATIONS", str(tmp_path))
    (tmp_path / "sensors.json").write_text("{")
    sensors, events = load_sensor_models([METER])
    assert sensors == {}
    assert [event.code for event in events] == ["CALIBRATION_UNREADABLE"]


def test_work_of_one_call_becomes_work_of_the_run():
    spans = [Span("a", "forward", i * 10, i * 10 + 5) for i in range(3)]
    known = device_priors(
        NO_PRIORS, (), {Slot("a", "forward"): (100.0, 8.0), Slot("b", "forward"): (1.0, 1.0)}, trace_from_spans(spans)
    )
    assert known.work == {Slot("a", "forward"): (300.0, 24.0)}


def test_a_looped_layer_is_known_no_better_than_its_context_allows():
    slots = (Slot("a", "forward"), Slot("b", "forward"))
    looped = ReplayedPower(GPU, slots, 200.0, 10.0, 1.0, 50, 0.01, quiet_w=70.0)
    known = device_priors(NO_PRIORS, (looped,), {}, EMPTY_TRACE)
    assert [r.slot for r in known.replays["gpu:0"]] == list(slots)
    assert known.replays["gpu:0"][0].sd_rel == pytest.approx((0.05**2 + 0.05**2) ** 0.5)
    assert known.idle_w == {"gpu:0": 70.0}
