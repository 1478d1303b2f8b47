"""The driver's ring of power samples, from the real pynvml and the simulated library to a recording and a report."""

from itertools import pairwise

import pytest

from tests.sensors.test_sensors_nvml import FOUND
from tests.sensors.test_sensors_sampled_gpu import RUN, codes

pytestmark = pytest.mark.simhw

BURSTS = {"base": 100.0, "high": 600.0, "on": 0.030, "period": 0.130}
# The simulated library stamps with a clock of its own, which this makes the time since boot.
BOOT = """
import mmap, os, threading, time
fd = os.open(os.environ["BOOT_CLOCK"], os.O_RDWR)
def tick():
    while True:
        os.pwrite(fd, time.clock_gettime_ns(time.CLOCK_BOOTTIME).to_bytes(8, "little"), 0)
        time.sleep(0.001)
threading.Thread(target=tick, daemon=True).start()
time.sleep(0.01)
"""


def gpu(sim, *lines, **settings):
    return sim.Scenario().gpu("hopper", sim.Trace.bursts(**BURSTS), lines=lines, **settings)


def fine(result):
    return result["series"]["gpu:0/power_fine"]


def test_a_ring_is_a_channel_beside_the_power_that_is_polled(simnvml, run_sim):
    found = run_sim(gpu(simnvml), FOUND)
    assert found["sensors"]["gpu:0/power"] == "nvml_power_instant"
    assert found["sensors"]["gpu:0/power_fine"] == "nvml_power_samples"
    assert found["periods"]["gpu:0/power_fine"] == 20_000_000
    assert found["periods"]["gpu:0/power"] == 100_000_000
    assert 0 < found["calls"]["gpu:0/power_fine"] < 0.01
    assert found["events"] == []


@pytest.mark.alone  # counts readings in real time
def test_every_sample_is_there_once_with_its_own_instant_to_the_end(simnvml, run_sim):
    scenario = gpu(simnvml)
    result = run_sim(scenario, RUN.format(seconds=3.4))
    points = fine(result)
    t_ns = [t for t, _ in points]
    assert [round((b - a) / 1e6) for a, b in pairwise(t_ns)] == [20] * (len(t_ns) - 1)
    assert len(points) > 3.2 / 0.02
    energy_ns = [t for t, _ in result["series"]["gpu:0/energy"]]
    assert energy_ns[-1] - t_ns[-1] < 60_000_000
    assert t_ns[0] > energy_ns[0] - 1_000_000  # none from before the start
    for t, raw in points:  # the simulated ring holds means of 20 ms
        assert raw / 1e3 == pytest.approx(scenario.truth(0, t - 20_000_000, t) / 0.020, rel=0.02, abs=2.0)
    assert codes(result) == []
    assert result["reads"]["gpu:0/power_fine"] == len(points)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["fault fn=nvmlDeviceGetSamples code=3"], "Not Supported"),
        (["fault fn=nvmlDeviceGetSamples code=999"], "Unknown Error"),
        (["sample_buffer 0"], "holds 0 samples"),
        (["sample_period_ms 100"], "100 ms apart"),
    ],
    ids=["not supported", "broken", "empty", "coarse"],
)
def test_a_ring_that_is_no_use_leaves_the_polled_power_and_is_told(simnvml, run_sim, lines, why):
    found = run_sim(gpu(simnvml, *lines), FOUND)
    assert "gpu:0/power_fine" not in found["sensors"]
    assert found["sensors"]["gpu:0/power"] == "nvml_power_instant"
    ((code, subject, message),) = found["events"]
    assert (code, subject) == ("RING_UNUSED", "gpu:0")
    assert why in message


def test_a_ring_that_fails_during_a_run_is_told_and_comes_back(simnvml, run_sim):
    scenario = gpu(simnvml, "fault fn=nvmlDeviceGetSamples code=15 from=2 until=4")
    result = run_sim(scenario, RUN.format(seconds=5.5))
    assert [code for code, _, message in result["events"] if "power_fine" in message] == ["SENSOR_LOST", "SENSOR_BACK"]
    assert not any(domain == "gpu:0" for domain, _ in result["unavailable"])
    assert len(result["series"]["gpu:0/power"]) > 5 / 0.1 * 0.8
    t_ns = [t for t, _ in fine(result)]
    assert t_ns[-1] > scenario.epoch + 4_500_000_000
    # The ring reaches back 2 s: what it kept meanwhile is there.
    assert len(t_ns) == len(set(t_ns)) > 3 / 0.02


def test_a_ring_that_freezes_says_nothing_more_and_is_no_error(simnvml, run_sim):
    result = run_sim(gpu(simnvml, "fault fn=nvmlDeviceGetSamples code=6 from=2"), RUN.format(seconds=3.0))
    assert codes(result) == []
    assert not any(domain == "gpu:0" for domain, _ in result["unavailable"])
    assert 0 < len(fine(result)) < 2 / 0.02
    assert len(result["series"]["gpu:0/power"]) > 3 / 0.1 * 0.8


def test_stamps_of_the_time_since_boot_are_told_from_those_of_the_wall_clock(simnvml, run_sim, tmp_path):
    clock = tmp_path / "clock"
    clock.write_bytes(bytes(8))
    scenario = gpu(simnvml).line(f"clock file {clock}")
    result = run_sim(scenario, BOOT + RUN.format(seconds=2.5), BOOT_CLOCK=str(clock))
    assert codes(result) == []
    assert len(fine(result)) > 2.2 / 0.02
