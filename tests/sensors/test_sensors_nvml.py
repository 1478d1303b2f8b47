"""Through the real pynvml against the simulated library; every case in its own process."""

import pytest

from tests.support.nvml_simulator import Scenario, gpu_uuid, slice_uuid
from torchwatt.core.errors import SensorError
from torchwatt.sensors.nvml import BASE_PERIOD_NS, BESIDE_RING_NS, discover_nvml, poll_period_ns

FOUND = """
import json
from torchwatt.sensors.nvml import discover_nvml
found = discover_nvml()
print(json.dumps({
    "meters": [[str(m.domain), m.fact("uuid"), m.shared, list(m.notes), m.model] for m in found.meters],
    "sensors": {c.key: c.sensor for m in found.meters for c in m.channels},
    "periods": {c.key: c.period_ns for m in found.meters for c in m.channels},
    "calls": {k: v for s in found.sources for k, v in s.call_s.items()},
    "facts": [dict(m.facts) for m in found.meters],
    "unavailable": [[u.domain, u.reason, u.fix] for u in found.unavailable],
    "events": [[e.code, e.subject, e.message] for e in found.events],
}))
"""


def gpus(scenario=None, count=2, **settings):
    scenario = scenario or Scenario()
    for i in range(count):
        scenario.gpu("hopper", 100.0 * (i + 1), **settings)
    return scenario


@pytest.mark.simhw
def test_two_devices_with_counter_and_instant_power_and_their_facts(run_on_gpus):
    found = run_on_gpus(gpus(limit_w=500, default_limit_w=650), FOUND)
    assert [m[:3] for m in found["meters"]] == [["gpu:0", gpu_uuid(0), False], ["gpu:1", gpu_uuid(1), False]]
    for gpu in ("gpu:0", "gpu:1"):
        assert found["sensors"][f"{gpu}/energy"] == "nvml_energy_counter"
        assert found["sensors"][f"{gpu}/power"] == "nvml_power_instant"
        assert found["periods"][f"{gpu}/power"] == BESIDE_RING_NS  # the ring is finer
        assert found["periods"][f"{gpu}/temperature"] == 1_000_000_000
        assert 0 < found["calls"][f"{gpu}/power"] < 0.01
    facts = found["facts"][0]
    assert (facts["power_limit_w"], facts["power_limit_default_w"]) == ("500.0", "650.0")
    assert facts["memory_bytes"] == str(80 * 2**30)
    assert facts["driver"]


@pytest.mark.simhw
@pytest.mark.parametrize(
    ("value", "uuids", "unavailable"),
    [
        ("1,0", [1, 0], False),
        (gpu_uuid(1), [1], False),
        ("", [], True),
        ("0,9", [0], False),
        (gpu_uuid(0)[:8], [], True),  # both begin so
    ],
)
def test_cuda_visible_devices_is_honoured_in_its_own_order(run_on_gpus, value, uuids, unavailable):
    found = run_on_gpus(gpus(), FOUND, CUDA_VISIBLE_DEVICES=value)
    assert [m[1] for m in found["meters"]] == [gpu_uuid(i) for i in uuids]
    assert [m[0] for m in found["meters"]] == [f"gpu:{i}" for i in range(len(uuids))]
    assert bool(found["unavailable"]) is unavailable
    if unavailable:
        assert "CUDA_VISIBLE_DEVICES" in found["unavailable"][0][1]
    stopped = [e for e in found["events"] if e[0] == "VISIBLE_DEVICES"]
    assert bool(stopped) is (value in {"0,9", gpu_uuid(0)[:8]})


@pytest.mark.simhw
def test_a_mig_slice_is_metered_whole_and_called_shared(run_on_gpus):
    scenario = Scenario().gpu("hopper", 50.0)
    scenario.gpu("hopper", 300.0, mig=2)
    found = run_on_gpus(scenario, FOUND, CUDA_VISIBLE_DEVICES=slice_uuid(gpu_uuid(1), 1))
    assert [m[:4] for m in found["meters"]] == [
        ["gpu:0", gpu_uuid(1), True, ["MIG slice: the whole GPU is metered"]],
    ]
    assert "gpu:0/energy" in found["sensors"]
    assert [e[:2] for e in found["events"]] == [["SHARED_DEVICE", "gpu:0"]]


@pytest.mark.simhw
def test_a_mig_slice_behind_an_empty_place_is_found(run_on_gpus):
    scenario = Scenario().fault("nvmlDeviceGetMigDeviceHandleByIndex", 6, count=1)
    scenario.gpu("hopper", 300.0, mig=2)
    found = run_on_gpus(scenario, FOUND, CUDA_VISIBLE_DEVICES=slice_uuid(gpu_uuid(0), 1))
    assert [m[1:3] for m in found["meters"]] == [[gpu_uuid(0), True]]


@pytest.mark.simhw
def test_a_gpu_that_does_not_tell_its_uuid_hides_no_other(run_on_gpus):
    scenario = gpus().fault("nvmlDeviceGetUUID", 15, gpu=1)
    found = run_on_gpus(scenario, FOUND)
    assert [m[:2] for m in found["meters"]] == [["gpu:0", gpu_uuid(0)]]
    assert [u[0] for u in found["unavailable"]] == ["gpu:1"]


@pytest.mark.simhw
def test_other_processes_make_a_device_shared_and_our_own_does_not(run_on_gpus):
    scenario = Scenario()
    scenario.gpu("hopper", 50.0).process()
    scenario.gpu("hopper", 50.0).process().process(1)
    found = run_on_gpus(scenario, FOUND)
    assert [m[2] for m in found["meters"]] == [False, True]
    assert [e[:2] for e in found["events"]] == [["SHARED_DEVICE", "gpu:1"]]


@pytest.mark.simhw
def test_each_device_is_asked_and_fallbacks_are_labelled(run_on_gpus):
    scenario = Scenario()
    scenario.gpu("hopper", 50.0, counter="none")
    scenario.gpu("hopper", 50.0).fault("field:186", 3, gpu=1)
    scenario.gpu("hopper", 50.0).fault("field:185,field:186", 3, gpu=2)
    scenario.gpu("hopper", 50.0).fault("nvmlDeviceGetTemperature", 3, gpu=3)
    found = run_on_gpus(scenario, FOUND)
    sensors = found["sensors"]
    assert "gpu:0/energy" not in sensors
    assert sensors["gpu:0/power"] == "nvml_power_instant"
    assert sensors["gpu:1/power"] == "nvml_power_average"
    assert sensors["gpu:2/power"] == "nvml_power"
    assert "gpu:3/temperature" not in sensors
    assert "gpu:3/memory" in sensors
    assert ["NOT_SUPPORTED", "gpu:0"] in [e[:2] for e in found["events"]]


@pytest.mark.simhw
def test_no_permission_is_unavailable_with_a_fix_and_the_other_device_stays(run_on_gpus):
    scenario = Scenario().gpu("hopper", 50.0)
    denied = "nvmlDeviceGetTotalEnergyConsumption,nvmlDeviceGetPowerUsage,nvmlDeviceGetFieldValues"
    scenario.gpu("hopper", 50.0).fault(denied, 4, gpu=1)
    found = run_on_gpus(scenario, FOUND)
    assert [m[0] for m in found["meters"]] == ["gpu:0"]
    ((domain, reason, fix),) = found["unavailable"]
    assert domain == "gpu:1"
    assert "Insufficient Permissions" in reason
    assert "/dev/nvidia" in fix


@pytest.mark.simhw
@pytest.mark.parametrize("code", [4, 9, 999])
def test_a_driver_that_does_not_start_is_said_not_raised(run_on_gpus, code):
    found = run_on_gpus(gpus().fault("nvmlInit", code), FOUND)
    assert found["meters"] == []
    assert found["unavailable"][0][0] == "gpu"
    assert f"NVML {code}" in found["unavailable"][0][1]


@pytest.mark.simhw
def test_a_lost_gpu_does_not_take_the_others_along(run_on_gpus):
    scenario = Scenario().gpu("hopper", 50.0).fault("*", 15, gpu=0)
    scenario.gpu("hopper", 50.0)
    found = run_on_gpus(scenario, FOUND)
    assert [m[1] for m in found["meters"]] == [gpu_uuid(1)]
    assert found["unavailable"][0][0] == "gpu:0"
    assert "xid" in found["unavailable"][0][2]


@pytest.mark.simhw
def test_expensive_calls_slow_the_sampling_down(run_on_gpus):
    found = run_on_gpus(gpus(Scenario(call_delay_us=2000), 1), FOUND)
    cost_s = found["calls"]["gpu:0/energy"]
    assert cost_s >= 0.002
    assert found["periods"]["gpu:0/energy"] >= cost_s / 0.01 * 1e9
    total = sum(found["calls"][f"gpu:0/{n}"] / found["periods"][f"gpu:0/{n}"] * 1e9 for n in ("energy", "power"))
    assert total <= 0.02


@pytest.mark.simhw
def test_a_driver_that_hangs_is_given_up(run_on_gpus):
    code = (
        FOUND.replace("discover_nvml()", "discover_nvml(probe_s=0.3)")
        + "\nimport os, sys; sys.stdout.flush(); os._exit(0)"
    )
    found = run_on_gpus(gpus().fault("nvmlDeviceGetCount", hang_ms=3000), code)
    assert "has not answered" in found["unavailable"][0][1]


@pytest.mark.simhw
def test_shutting_down_is_paired_so_that_another_user_of_nvml_goes_on(run_on_gpus):
    code = (
        "import pynvml; pynvml.nvmlInit()\n"
        + FOUND
        + "assert pynvml.nvmlDeviceGetCount() == 2; pynvml.nvmlShutdown()\n"
        + "try:\n    pynvml.nvmlDeviceGetCount()\nexcept pynvml.NVMLError_Uninitialized:\n    pass\n"
        + "else:\n    raise SystemExit('somebody kept a reference')"
    )
    assert len(run_on_gpus(gpus(), code)["meters"]) == 2


@pytest.mark.simhw
def test_a_reader_survives_that_somebody_else_shuts_nvml_down(run_on_gpus):
    code = """
import json, pynvml
from torchwatt.core.errors import SensorError
from torchwatt.sensors.nvml import discover_nvml
(source,) = discover_nvml().sources
channel = source.meters[0].channels[0]
first = source.read(channel)
pynvml.nvmlShutdown()
try:
    source.read(channel)
except SensorError as error:
    code = error.code
print(json.dumps([first > 0, code, source.read(channel) >= first]))
"""
    assert run_on_gpus(gpus(), code) == [True, "SENSOR_ERROR", True]


@pytest.mark.parametrize(("cost_s", "expected"), [(0, BASE_PERIOD_NS), (2e-4, BASE_PERIOD_NS), (2.4e-3, 240_000_000)])
def test_the_period_keeps_reads_under_one_percent(cost_s, expected):
    assert poll_period_ns(cost_s) == expected


def test_without_a_driver_the_reason_and_the_fix_are_given(monkeypatch):
    def missing():
        raise SensorError("gpu: nvmlInit: library not found", code="SENSOR_MISSING")

    monkeypatch.setattr("torchwatt.sensors.nvml.load_nvml", missing)
    (unavailable,) = discover_nvml({}).unavailable
    assert unavailable.domain == "gpu"
    assert "nvidia-container-toolkit" in unavailable.fix


def test_a_binding_that_breaks_is_told_not_raised(monkeypatch):
    monkeypatch.setattr("torchwatt.sensors.nvml.load_nvml", object)
    (unavailable,) = discover_nvml({}).unavailable
    assert "discovery failed" in unavailable.reason


@pytest.mark.simhw
def test_different_models_are_warned_about_because_cuda_may_count_otherwise(run_on_gpus):
    scenario = Scenario().gpu("hopper", 50.0, name="A")
    scenario.gpu("hopper", 50.0, name="B")
    fastest = run_on_gpus(scenario, FOUND, CUDA_DEVICE_ORDER="FASTEST_FIRST")
    assert [e[0] for e in fastest["events"]] == ["VISIBLE_DEVICES"]
    assert run_on_gpus(scenario, FOUND, CUDA_DEVICE_ORDER="PCI_BUS_ID")["events"] == []
