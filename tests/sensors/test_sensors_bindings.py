"""Distributions called pynvml: those of NVIDIA of all ages, abandoned ones, broken ones, and a user's own module."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from tests.support.heavy import some_of
from tests.support.nvml_simulator import Scenario
from torchwatt.core.errors import SensorError
from torchwatt.sensors.readers.nvml_reader import TextBinding, load_nvml

# pynvml up to 11.4 and nvidia-ml-py up to 11.450: bytes wherever newer ones have text, and fewer functions.
OF_BYTES = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("newer_pynvml", {find_spec("pynvml").origin!r})
newer = sys.modules["newer_pynvml"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(newer)
globals().update({{name: value for name, value in vars(newer).items() if not name.startswith("__")}})

def old(function):
    def call(*args):
        if any(isinstance(arg, str) for arg in args):
            raise TypeError("bytes or integer address expected instead of str instance")
        said = function(*(arg.decode() if isinstance(arg, bytes) else arg for arg in args))
        return said.encode() if isinstance(said, str) else said
    return call

for name in [name for name in globals() if name.startswith("nvml")]:
    globals()[name] = old(globals()[name])
del nvmlDeviceGetMigMode, nvmlDeviceGetMaxMigDeviceCount, nvmlDeviceGetMPSComputeRunningProcesses
"""
BINDINGS = {
    "bytes": OF_BYTES,
    "broken": "raise RuntimeError('no version of this')",
    "deprecated": "import warnings\nwarnings.warn('The pynvml package is deprecated', FutureWarning)\n" + OF_BYTES,
    "deprecated, and warnings are errors": "raise FutureWarning('The pynvml package is deprecated')",
    "not Python": "def f(:",
    "a user's own": "power = 3",
    "half": "class NVMLError(Exception): pass\ndef nvmlInit(): pass\ndef nvmlShutdown(): pass",
    "of other errors": (
        "class NVMLError(Exception): pass\ndef nvmlInit(): pass\ndef nvmlShutdown(): pass\n"
        "def nvmlDeviceGetCount(): raise ValueError('what')"
    ),
}
PROGRAM = """
import time
import torchwatt as tw
with tw.profile(layers="off", region="FRA", baseline_s=0) as run:
    total = sum(range(1000))
    time.sleep(0.5)  # microseconds may pass between two readings, and have no joules
assert str(run) and run.energy_j is not None and run.carbon_g is not None
print(total, [u.domain for u in run.report.unavailable])
"""


def shadow(folder, text):
    (folder / "pynvml.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


@pytest.mark.parametrize("binding", some_of(BINDINGS, 3))
def test_the_program_always_runs(binding, tmp_path):
    env = {**os.environ, **shadow(tmp_path, BINDINGS[binding])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("499500 ['gpu'")


@pytest.mark.simhw
def test_a_binding_of_bytes_meters_as_a_newer_one(run_on_gpus, tmp_path):
    code = """
import json, time
import torchwatt as tw
with tw.profile(layers="off") as run:
    time.sleep(1.0)
gpu = next(m for m in run.report.meters if m.domain.kind == "gpu")
print(json.dumps({"facts": dict(gpu.facts), "sensors": [c.sensor for c in gpu.channels],
                  "energy_j": next(l.energy_j for l in run.report.ledgers if str(l.domain) == "gpu:0"),
                  "s": run.duration_s}))
"""
    scenario = Scenario().gpu("hopper", 180, noise_w=2.0)
    newer = run_on_gpus(scenario, code)
    older = run_on_gpus(scenario, code, **shadow(tmp_path, OF_BYTES))
    assert older["facts"] == newer["facts"]
    assert older["sensors"] == newer["sensors"]
    assert older["energy_j"] == pytest.approx(180 * older["s"], rel=0.1)


def test_text_goes_in_and_out_of_a_binding_of_bytes():
    module = SimpleNamespace(
        NVML_ERROR_UNKNOWN=999, nvmlDeviceGetHandleByUUID=lambda uuid: [uuid], nvmlDeviceGetName=lambda _: b"A100"
    )
    nvml = TextBinding(module)
    assert nvml.nvmlDeviceGetHandleByUUID("GPU-1") == [b"GPU-1"]
    assert nvml.nvmlDeviceGetName(3) == "A100"
    assert nvml.NVML_ERROR_UNKNOWN == 999
    with pytest.raises(AttributeError, match="nvmlNothing"):
        _ = nvml.nvmlNothing


def test_a_module_of_that_name_that_is_none_is_said_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(__file__="/home/mine/pynvml.py"))
    with pytest.raises(SensorError, match=r"pynvml \(/home/mine/pynvml.py\) is not NVIDIA's"):
        load_nvml()
