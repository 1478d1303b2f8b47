"""A calibration through the real pynvml: a simulated card whose power follows the load."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.nvml_simulator import PowerFile, Scenario
from tests.support.ready import run_script
from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Unavailable
from torchwatt.offline.sensor_calibration import calibrate
from torchwatt.sensors.protocol import Discovery

SECONDS = 12
CALIBRATE = """
import json, time
from tests.support.nvml_simulator import PowerFile
from torchwatt.offline.sensor_calibration import calibrate
power = PowerFile({log!r})

def burn(duration_ns):
    power.set(310.0)
    start_ns = time.monotonic_ns()
    time.sleep(duration_ns / 1e9)
    power.set(60.0)
    return start_ns, time.monotonic_ns()

found = calibrate("gpu:0", seconds={seconds}, burn=burn)
print(json.dumps([{{"key": one.key, "model": one.model.to_json()}} for one in (found, found.fine)]))
"""


SENSORS = {"a quarter of the time": (25, 100), "all the time": (100, 100)}  # window and period in ms


@pytest.fixture(scope="module")
def calibrations(nvml_simulator, tmp_path_factory):
    """Calibrate each card in a process of its own, all at once: they sleep nearly all of the time."""

    def calibrated(window_ms, period_ms):
        folder = tmp_path_factory.mktemp("card")
        power = PowerFile(folder / "power", 60.0)
        scenario = Scenario().gpu("hopper", power, update_ms=period_ms, instant_ms=window_ms, noise_w=0.5)
        none = {"TORCHWATT_POWERCAP_ROOT": str(folder / "none"), "TORCHWATT_CALIBRATIONS": str(folder)}
        env = scenario.environment(folder / "scenario", **none)
        found = run_script(CALIBRATE.format(log=str(power.path), seconds=SECONDS), env, timeout_s=120.0)
        return found, json.loads((folder / "sensors.json").read_text())

    with ThreadPoolExecutor() as pool:
        return dict(zip(SENSORS, pool.map(lambda sensor: calibrated(*sensor), SENSORS.values()), strict=True))


@pytest.mark.simhw
@pytest.mark.slow
@pytest.mark.alone  # milliseconds
@pytest.mark.heavy
@pytest.mark.parametrize("looks", SENSORS)
def test_the_window_and_the_period_of_a_sensor_are_found_and_kept(calibrations, looks):
    window_ms, period_ms = SENSORS[looks]
    (found, fine), kept = calibrations[looks]
    model = found["model"]
    assert model["period_s"] == pytest.approx(period_ms / 1e3, abs=2e-4)
    # A low-pass may stand for a part of a boxcar: what counts is the age of the answer, half the window plus tau.
    age_s = model["kernel"]["window_s"] / 2 + model["kernel"]["tau_s"] + model["kernel"]["lag_s"]
    assert age_s == pytest.approx(window_ms / 2e3, abs=2e-3)
    assert model["rms_w"] < 10.0  # of 250 W
    assert kept["sensors"] == {found["key"]: model, fine["key"]: fine["model"]}
    assert found["key"].endswith("/nvml_power_instant")


@pytest.mark.simhw
@pytest.mark.slow
@pytest.mark.alone  # milliseconds
@pytest.mark.heavy
def test_the_drivers_own_samples_are_calibrated_by_the_same_load(calibrations):
    (_, fine), _ = calibrations["a quarter of the time"]
    model = fine["model"]
    assert fine["key"].endswith("/nvml_power_samples")
    assert model["period_s"] == pytest.approx(0.020, abs=2e-4)
    age_s = model["kernel"]["window_s"] / 2 + model["kernel"]["tau_s"] + model["kernel"]["lag_s"]
    assert age_s == pytest.approx(0.010, abs=2e-3)  # the simulated ring holds means of 20 ms
    assert model["rms_w"] < 10.0  # of 250 W


def test_a_device_that_is_not_there_is_named_with_the_reason():
    found = Discovery((), (Unavailable("gpu", "NVML Shared Library Not Found"),))
    with pytest.raises(ConfigError, match=r"'gpu:0'.*Shared Library Not Found"):
        calibrate(discovery=found)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0, -1.0, 1e300])
def test_a_time_that_is_none_is_refused_before_anything_is_driven(seconds):
    with pytest.raises(ConfigError, match="seconds"):
        calibrate("gpu:0", seconds=seconds, path=Path("never"))
