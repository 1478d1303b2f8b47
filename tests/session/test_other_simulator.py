"""The whole product through the real pynvml and a simulated library that others wrote: what ours takes for granted."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from tests.session.test_nvml import PROFILE
from tests.support.ready import run_script

FOLDER = Path(os.environ.get("TORCHWATT_SIMHW", Path(__file__).resolve().parents[3] / "shared" / "simhw"))
if not (FOLDER / "simnvml.py").is_file() or shutil.which("cc") is None:
    pytest.skip(f"no other simulated NVML in {FOLDER}, or no C compiler", allow_module_level=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("simnvml", FOLDER / "simnvml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.libdir = module.build(tmp_path_factory.mktemp("simnvml"))
    return module


@pytest.mark.parametrize("settings", [{}, {"energy": "none"}], ids=["counter", "power alone"])
def test_joules_of_the_other_library_are_its_truth(other, settings, tmp_path):
    scenario = other.Scenario().gpu("ideal", other.Trace.const(180), noise_w=2.0, **settings)
    none = {"TORCHWATT_POWERCAP_ROOT": str(tmp_path / "none")}
    found = run_script(PROFILE.format(seconds=2.0), scenario.env(tmp_path / "scenario", other.libdir, **none))
    assert found["energy_j"]["gpu:0"] == pytest.approx(scenario.truth(0, *found["span_ns"]["gpu:0"]), rel=0.02)
    assert found["method"]["gpu:0"] == ("power_integral" if settings else "counter")
