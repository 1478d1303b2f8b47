import pytest

from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Meter
from torchwatt.core.terms import Domain
from torchwatt.sensors.calibrations import calibration_key, calibrations_file, load_calibrations, save_calibration

GPU = Meter(Domain("gpu", 0), (), "measured", "device", "NVIDIA A100", facts=(("uuid", "GPU-1"), ("driver", "550.1")))


def test_what_is_kept_is_found_again_and_others_stay(tmp_path):
    path = calibrations_file({"TORCHWATT_CALIBRATIONS": str(tmp_path / "kept")})
    assert load_calibrations(path) == {}
    key = calibration_key(GPU, "nvml_power_instant")
    save_calibration(path, key, {"period_s": 0.1})
    save_calibration(path, "other", {"period_s": 0.02})
    assert load_calibrations(path) == {key: {"period_s": 0.1}, "other": {"period_s": 0.02}}
    assert [p.name for p in path.parent.iterdir()] == ["sensors.json"]


def test_another_driver_is_another_sensor():
    newer = Meter(Domain("gpu", 0), (), "measured", "device", "", facts=(("uuid", "GPU-1"), ("driver", "560")))
    assert calibration_key(GPU, "nvml_power") != calibration_key(newer, "nvml_power")


def test_a_device_without_a_name_has_no_calibration():
    assert calibration_key(Meter(Domain("gpu", 0), (), "measured", "device", ""), "nvml_power") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "torchwatt-calibrations"}'])
def test_a_damaged_file_is_named_with_the_fix(tmp_path, text):
    path = tmp_path / "sensors.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"sensors\.json.*calibrate again"):
        load_calibrations(path)


def test_the_users_cache_folder_is_the_default():
    assert str(calibrations_file({"XDG_CACHE_HOME": "/c"})) == "/c/torchwatt/sensors.json"
    assert str(calibrations_file({})).endswith(".cache/torchwatt/sensors.json")
