"""The whole product on simulated GPUs, read through the real pynvml."""

import pytest

from tests.support.nvml_simulator import PowerTrace, Scenario, slice_uuid

pytestmark = pytest.mark.simhw

BURSTS = PowerTrace.bursts(100.0, 600.0, on_s=0.030, period_s=0.130)

PROFILE = """
import json, time
import torchwatt as tw
from torchwatt.views.power_chart import gauge_lines
with tw.profile(layers="off") as run:
    time.sleep({seconds})
report = run.report
offset = report.start_unix_ns - report.start_ns
print(json.dumps({{
    "sampling_since_ns": report.start_unix_ns,
    "end_ns": report.end_ns + offset,
    "status": report.status,
    "energy_j": {{str(led.domain): led.energy_j for led in report.ledgers}},
    "method": {{str(led.domain): led.method for led in report.ledgers}},
    "known_s": {{str(led.domain): led.known_s for led in report.ledgers}},
    "span_ns": {{str(c.domain): [c.start_ns + offset, c.end_ns + offset] for c in report.curves}},
    "codes": sorted({{e.code for e in report.events}}),
    "unavailable": [[u.domain, u.reason] for u in report.unavailable],
    "lines": {{f"{{line.domain}} {{line.kind}}": [line.t_s.tolist(), line.value.tolist()]
              for line in gauge_lines(report, 1000)}},
    "call_s": dict(report.sampler.call_s),
    "sensors": {{str(m.domain): [c.sensor for c in m.channels if c.quantity != "gauge"] for m in report.meters}},
}}))
"""


def profiled(run_on_gpus, scenario, seconds, **env):
    return run_on_gpus(scenario, PROFILE.format(seconds=seconds), **env)


def truth_j(scenario, gpu, found):
    return scenario.true_energy_j(gpu, *found["span_ns"][f"gpu:{gpu}"])


@pytest.mark.slow
def test_two_gpus_in_bursts_are_metered_within_one_percent(run_on_gpus):
    scenario = Scenario().gpu("hopper", BURSTS, noise_w=2.0).gpu("ga100", BURSTS, noise_w=2.0)
    found = profiled(run_on_gpus, scenario, 8.0)
    for gpu in (0, 1):
        assert found["energy_j"][f"gpu:{gpu}"] == pytest.approx(truth_j(scenario, gpu, found), rel=0.01)
        assert found["sensors"][f"gpu:{gpu}"] == ["nvml_energy_counter", "nvml_power_instant", "nvml_power_samples"]
        assert found["method"][f"gpu:{gpu}"] == "counter"
    assert found["status"] == "complete"


def test_utilisation_and_temperature_are_read_once_a_second_and_break_where_the_gpu_is_lost(run_on_gpus):
    scenario = Scenario().gpu("ideal", 250, utilization=73, temperature=58).gpu("ideal", 250, utilization=11)
    scenario.fault("*", 15, gpu=1, from_s=3.5)
    found = profiled(run_on_gpus, scenario, 4.0)
    t_s, percent = found["lines"]["gpu:0 utilisation"]
    assert set(percent) == {73.0}
    assert set(found["lines"]["gpu:0 temperature"][1]) == {58.0}
    assert 3 <= len(t_s) <= 6
    assert set(found["lines"]["gpu:1 utilisation"][1]) == {11.0}
    assert max(found["lines"]["gpu:1 utilisation"][0]) < 3.6
    assert {"gpu:0/utilization", "gpu:0/temperature"} <= set(found["call_s"])


def test_without_a_counter_power_is_integrated_and_labelled(run_on_gpus):
    scenario = Scenario().gpu("ideal", 180, counter="none", noise_w=2.0)
    found = profiled(run_on_gpus, scenario, 2.0)
    assert found["energy_j"]["gpu:0"] == pytest.approx(truth_j(scenario, 0, found), rel=0.01)
    assert (found["method"]["gpu:0"], found["sensors"]["gpu:0"]) == (
        "power_integral",
        ["nvml_power_instant", "nvml_power_samples"],
    )


def test_a_lost_gpu_keeps_what_was_measured_and_says_when_it_ended(run_on_gpus):
    scenario = Scenario().gpu("ideal", 250, noise_w=2.0)
    scenario.fault("*", 15, gpu=0, from_s=3.5)
    found = profiled(run_on_gpus, scenario, 4.0)
    assert "SENSOR_LOST" in found["codes"]
    assert found["status"] == "partial"
    assert found["energy_j"]["gpu:0"] == pytest.approx(truth_j(scenario, 0, found), rel=0.02)
    assert 0 < found["known_s"]["gpu:0"] < 3.6


def test_a_counter_that_goes_backwards_is_bridged(run_on_gpus):
    scenario = Scenario().gpu("ideal", 250, noise_w=2.0).reset_counter(2.5)
    found = profiled(run_on_gpus, scenario, 3.5)
    assert "COUNTER_RESET" in found["codes"]
    assert found["energy_j"]["gpu:0"] == pytest.approx(truth_j(scenario, 0, found), rel=0.02)


def test_a_frozen_counter_is_replaced_by_power_from_then_on(run_on_gpus):
    scenario = Scenario().gpu("hopper", 250, noise_w=2.0).freeze_counter(2, 60)
    found = profiled(run_on_gpus, scenario, 5.0)
    assert "COUNTER_FROZEN" in found["codes"]
    assert found["energy_j"]["gpu:0"] == pytest.approx(truth_j(scenario, 0, found), rel=0.03)


def test_a_stuck_power_sensor_is_said_and_the_counter_stands(run_on_gpus):
    scenario = Scenario().gpu("ideal", PowerTrace.steps((0.0, 100.0), (1.0, 400.0)), noise_w=2.0)
    scenario.freeze_power(0.5, 60)
    found = profiled(run_on_gpus, scenario, 6.0)
    assert {"POWER_FROZEN", "CROSS_CHECK"} <= set(found["codes"])
    assert found["energy_j"]["gpu:0"] == pytest.approx(truth_j(scenario, 0, found), rel=0.02)


def test_no_permission_is_unavailable_never_zero(run_on_gpus):
    scenario = Scenario().gpu("ideal", 100)
    scenario.fault("nvmlDeviceGetTotalEnergyConsumption,nvmlDeviceGetPowerUsage,field:*", 4, gpu=0)
    found = profiled(run_on_gpus, scenario, 0.5)
    assert "gpu:0" not in found["energy_j"]
    assert any(domain.startswith("gpu") and "ermission" in reason for domain, reason in found["unavailable"])


def test_a_driver_that_hangs_for_two_seconds_costs_resolution_not_joules(run_on_gpus):
    scenario = Scenario().gpu("ideal", 200, noise_w=2.0)
    calls = "nvmlDeviceGetTotalEnergyConsumption,field:186"
    scenario.fault(calls, gpu=0, from_s=2, until_s=4, hang_ms=2000, count=1)
    found = profiled(run_on_gpus, scenario, 5.0)
    assert found["energy_j"]["gpu:0"] == pytest.approx(truth_j(scenario, 0, found), rel=0.02)
    assert "SENSOR_HANG" in found["codes"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", {"gpu:0"}),
        ("GPU-bbbbbbbb-0000-0000-0000-000000000002", {"gpu:0"}),
        ("GPU-bbbb", {"gpu:0"}),
        (slice_uuid("GPU-bbbbbbbb-0000-0000-0000-000000000002", 0), {"gpu:0"}),
        ("", set()),
    ],
    ids=["index", "uuid", "prefix", "mig", "empty"],
)
def test_visible_devices_in_all_their_forms(run_on_gpus, visible, expected):
    scenario = Scenario()
    scenario.gpu("ideal", 100, uuid="GPU-aaaaaaaa-0000-0000-0000-000000000001")
    scenario.gpu("ideal", 300, uuid="GPU-bbbbbbbb-0000-0000-0000-000000000002", mig=2)
    found = profiled(run_on_gpus, scenario, 0.6, CUDA_VISIBLE_DEVICES=visible)
    assert {name for name in found["energy_j"] if name.startswith("gpu")} == expected
    if expected:
        seconds = found["known_s"]["gpu:0"]
        assert found["energy_j"]["gpu:0"] == pytest.approx(300 * seconds, rel=0.05)  # the second one, metered whole


KILLED = """
import os, signal, time
import torchwatt as tw
with tw.profile(layers="off", journal={journal!r}):
    time.sleep(2.5)
    print("[]", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
RECOVERED = """
import json, time
from pathlib import Path
import torchwatt as tw
time.sleep(0.5)  # the sampler ends by itself
from torchwatt.journal.journal_reader import read_journal
from torchwatt.journal.journal_reader import rebuild_recording
journal = Path({journal!r})
recording = rebuild_recording(read_journal(journal))
report = tw.recover(journal)
fine = recording.get("gpu:0/power_fine")
print(json.dumps({{
    "samples": len(fine), "apart_ms": sorted(set(((fine.t_ns[1:] - fine.t_ns[:-1]) / 1e6).round().tolist())),
    "sensor": fine.channel.sensor, "energy_j": report.ledgers[0].energy_j, "known_s": report.ledgers[0].known_s,
}}))
"""


def test_the_drivers_samples_are_in_the_journal_of_a_killed_run(run_on_gpus, tmp_path):
    scenario = Scenario().gpu("ideal", 250, noise_w=2.0)
    journal = str(tmp_path / "journal")
    with pytest.raises(AssertionError):  # it is killed
        run_on_gpus(scenario, KILLED.format(journal=journal))
    found = run_on_gpus(scenario, RECOVERED.format(journal=journal))
    assert found["samples"] > 1.4 / 0.02  # the last second is lost where all is killed at once, here it is not
    assert found["apart_ms"] == [20.0]
    assert found["sensor"] == "nvml_power_samples"
    assert found["energy_j"] == pytest.approx(250 * found["known_s"], rel=0.02)
