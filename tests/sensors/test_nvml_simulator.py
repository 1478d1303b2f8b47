"""The simulated NVML itself, read by the real pynvml in virtual time: what it says is the scenario's exact truth."""

import os
import subprocess
from math import isclose
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.nvml_simulator import PowerFile, PowerTrace, Scenario, build_library, gpu_uuid, slice_uuid
from tests.support.ready import run_script

pytestmark = pytest.mark.simhw

ORIGIN_NS = 1_800_000_000_000_000_000
READ = """
import json, os, threading, time
import pynvml as n
clock = os.open(os.environ["CLOCK"], os.O_WRONLY)

def at(seconds):
    os.pwrite(clock, (int(os.environ["ORIGIN_NS"]) + round(seconds * 1e9)).to_bytes(8, "little"), 0)

def code_of(call, *arguments):
    try:
        call(*arguments)
    except n.NVMLError as error:
        return error.value
    return 0

def field_mw(gpu, field, scope=0):
    (value,) = n.nvmlDeviceGetFieldValues(gpu, [(field, scope)])
    return value.value.uiVal if value.nvmlReturn == 0 else -value.nvmlReturn

def gpus():
    return [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]

energy_mj, power_mw = n.nvmlDeviceGetTotalEnergyConsumption, n.nvmlDeviceGetPowerUsage
at(0)
n.nvmlInit()
gpu = gpus()[0]
"""


@pytest.fixture
def read(nvml_simulator, tmp_path):
    """Return a runner of code that sets the time with `at`, calls pynvml as `n` and prints JSON."""

    def run(scenario, code):
        scenario.clock, scenario.origin_ns = tmp_path / "clock", ORIGIN_NS
        scenario.clock.write_bytes(bytes(8))
        env = scenario.environment(tmp_path / "scenario", CLOCK=str(scenario.clock), ORIGIN_NS=str(ORIGIN_NS))
        return run_script(READ + code, env)

    return run


points = st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.0, 900.0)), min_size=1, max_size=6)


def trace_of(gaps_and_watts, *, ramp=False, repeats=False):
    offset_s, found = 0.0, []
    for gap_s, watts in gaps_and_watts:
        found.append((offset_s, watts))
        offset_s += gap_s
    make = PowerTrace.ramps if ramp else PowerTrace.steps
    return make(*found, repeat_s=offset_s if repeats else 0.0)


def power_w(trace, t_s):
    """Look a trace's power up, without its integral."""
    piece = next(p for p in reversed(trace.pieces) if p.at_s <= t_s)
    offset_s = (t_s - piece.at_s) % piece.repeat_s if piece.repeat_s else t_s - piece.at_s
    i = max(i for i, (s, _) in enumerate(piece.points) if s <= offset_s)
    start_s, start_w = piece.points[i]
    if not piece.ramp or i + 1 == len(piece.points):
        return start_w
    end_s, end_w = piece.points[i + 1]
    return start_w + (end_w - start_w) * (offset_s - start_s) / (end_s - start_s)


@given(points, st.booleans(), st.booleans(), st.floats(0.0, 9.0), st.floats(0.0, 9.0))
def test_the_truth_is_the_sum_of_small_pieces_of_the_power(gaps, ramp, repeats, one_s, other_s):
    trace = trace_of(gaps, ramp=ramp, repeats=repeats).then(8.0, 50.0)
    start_s, end_s = sorted((one_s, other_s))
    width_s = (end_s - start_s) / 3000
    slow_j = sum(power_w(trace, start_s + (i + 0.5) * width_s) for i in range(3000)) * width_s
    # A jump inside a small piece is off by at most half of it; there are at most 7 in each period of 10 ms or more.
    jumps = 7 * (1 + (end_s - start_s) / max(trace.pieces[0].repeat_s or 9.0, 0.01))
    assert isclose(trace.energy_j(start_s, end_s), slow_j, abs_tol=900 * width_s * jumps + 1e-6)
    middle_s = (start_s + end_s) / 2
    parts_j = trace.energy_j(start_s, middle_s) + trace.energy_j(middle_s, end_s)
    assert isclose(parts_j, trace.energy_j(start_s, end_s), abs_tol=1e-6)


def test_counters_without_sampling_are_the_exact_integral_of_any_power(read):
    random, scenario = Random(1), Scenario()
    traces = [
        trace_of([(random.uniform(0.01, 2), random.uniform(0, 900)) for _ in range(5)], ramp=i % 2, repeats=i % 3)
        for i in range(12)
    ]
    for trace in traces:
        scenario.gpu("ideal", trace.then(7.0, 33.0))
    times_s = sorted(random.uniform(0, 10) for _ in range(40))
    read_mj = read(scenario, f"out = []\nfor t in {times_s}:\n    at(t); out.append([energy_mj(g) for g in gpus()])\n"
                             "print(json.dumps(out))")  # fmt: skip
    for t_s, row_mj in zip(times_s, read_mj, strict=True):
        for i, value_mj in enumerate(row_mj):
            true_mj = scenario.true_energy_j(i, ORIGIN_NS, ORIGIN_NS + round(t_s * 1e9)) * 1e3
            assert value_mj - 1_000_000_000 == pytest.approx(true_mj, abs=1.01)


def test_power_is_the_mean_of_the_window_before_the_last_publication(read):
    trace = PowerTrace.bursts()
    scenario = Scenario().gpu("hopper", trace)
    times_s = [2.0, 2.0499, 2.1, 2.25, 3.999, 7.77]
    code = f"for_each = {times_s}\nout = []\nfor t in for_each:\n    at(t)\n"
    code += "    out.append([field_mw(gpu, 186), field_mw(gpu, 185), power_mw(gpu), energy_mj(gpu)])\n"
    for t_s, (instant, average, usage, counter) in zip(
        times_s, read(scenario, code + "print(json.dumps(out))"), strict=True
    ):
        tick_s = int(t_s * 10 + 1e-9) / 10
        assert instant == pytest.approx(trace.energy_j(tick_s - 0.025, tick_s) / 0.025 * 1e3, abs=1)
        assert average == usage == pytest.approx(trace.energy_j(tick_s - 1, tick_s) * 1e3, abs=1)
        assert counter - 1e9 == pytest.approx(trace.energy_j(0, tick_s) * 1e3, abs=1.01)


def test_a_publication_has_one_noise_and_publications_have_that_of_the_scenario(read):
    code = "out = []\nfor i in range(400):\n    at(i / 10 + 0.01); one = field_mw(gpu, 186)\n"
    code += "    at(i / 10 + 0.09); assert field_mw(gpu, 186) == one\n    out.append(one / 1e3)\nprint(json.dumps(out))"
    watts = read(Scenario().gpu("hopper", 300.0, noise_w=2.0), code)
    mean_w = sum(watts) / len(watts)
    spread_w = (sum((w - mean_w) ** 2 for w in watts) / len(watts)) ** 0.5
    assert mean_w == pytest.approx(300.0, abs=0.5)
    assert spread_w == pytest.approx(2.0, rel=0.2)


def test_the_ring_gives_what_is_newer_oldest_first_and_reaches_back_its_length(read):
    trace = PowerTrace.bursts()
    code = """
at(5.013)
kind, whole = n.nvmlDeviceGetSamples(gpu, 0, 0)
newer = n.nvmlDeviceGetSamples(gpu, 0, whole[-4].timeStamp)[1]
none = code_of(n.nvmlDeviceGetSamples, gpu, 0, whole[-1].timeStamp)
print(json.dumps({"kind": kind, "none": none, "module": code_of(n.nvmlDeviceGetSamples, gpu, 7, 0),
    "newer": [s.timeStamp for s in newer], "whole": [[s.timeStamp, s.sampleValue.uiVal] for s in whole]}))
"""
    found = read(Scenario().gpu("hopper", trace), code)
    assert (found["kind"], found["none"], found["module"]) == (1, 6, 3)
    stamps_us = [stamp for stamp, _ in found["whole"]]
    assert stamps_us == [ORIGIN_NS // 1000 + 5_000_000 - i * 20_000 for i in reversed(range(120))]
    assert found["newer"] == stamps_us[-3:]
    for stamp_us, value_mw in found["whole"]:
        end_s = (stamp_us - ORIGIN_NS // 1000) / 1e6
        assert value_mw == pytest.approx(trace.energy_j(end_s - 0.02, end_s) / 0.02 * 1e3, abs=1)


def test_a_counter_is_reset_jumps_wraps_and_stands_still(read):
    scenario = Scenario().gpu("ideal", 100.0).reset_counter(2.0, 7)
    scenario.gpu("ideal", 100.0).add_to_counter(2.0, -50_000).add_to_counter(4.0, 2**63)
    scenario.gpu("ideal", 100.0, counter_start_mj=0, counter_wrap_mj=250_000)
    scenario.gpu("ideal", 100.0, counter_start_mj=0).freeze_counter(1.0, 3.0)
    scenario.gpu("ideal", 100.0, counter_start_mj=0, counter_gain=1.6)
    scenario.gpu("ideal", 100.0, counter="none")
    code = "out = []\nfor t in (1.5, 2.5, 3.5, 4.5):\n    at(t); out.append([energy_mj(g) for g in gpus()[:5]])\n"
    code += "print(json.dumps([out, code_of(energy_mj, gpus()[5]), field_mw(gpus()[5], 83)]))"
    rows, *not_supported = read(scenario, code)
    start, jump = 1_000_000_000, 2**63
    assert [list(row) for row in zip(*rows, strict=True)] == [
        [start + 150_000, 7 + 50_000, 7 + 150_000, 7 + 250_000],
        [start + 150_000, start + 200_000, start + 300_000, start + 400_000 + jump],
        [150_000, 0, 100_000, 200_000],
        [100_000, 100_000, 350_000, 450_000],
        [240_000, 400_000, 560_000, 720_000],
    ]
    assert not_supported == [3, -3]


def test_power_sensors_stand_still_or_say_what_they_are_told(read):
    scenario = Scenario().gpu("ideal", PowerTrace.steps((0.0, 100.0), (2.0, 400.0))).freeze_power(1.0, 3.0)
    scenario.gpu("ideal", 100.0).force_power(0, 1.0, 2.0).force_power(-1, 2.0, 3.0).force_power(1e9, 3.0, 4.0)
    code = "out = []\nfor t in (0.5, 1.5, 2.5, 3.5):\n    at(t); out.append([power_mw(g) for g in gpus()])\n"
    code += "ring = n.nvmlDeviceGetSamples(gpus()[1], 0, 0)[1]\n"
    rows, ring_mw = read(scenario, code + "print(json.dumps([out, sorted({s.sampleValue.uiVal for s in ring})]))")
    assert [list(row) for row in zip(*rows, strict=True)] == [
        [100_000, 100_000, 100_000, 400_000],
        [100_000, 0, 2**32 - 1000, 2**32 - 1],
    ]
    assert set(ring_mw) <= {100_000, 0, 2**32 - 1000, 2**32 - 1}


def test_faults_are_those_of_their_calls_gpus_times_and_counts(read):
    scenario = Scenario().gpu("hopper", 100.0).gpu("hopper", 100.0)
    scenario.fault("nvmlDeviceGetPowerUsage,nvmlDeviceGetTemp*", 15, gpu=1, from_s=1.0, until_s=2.0)
    scenario.fault("field:186", 3, gpu=0).fault("nvmlDeviceGetName", 999, count=2)
    scenario.fault("nvmlDeviceGetHandleByIndex", 28, gpu=1, from_s=5.0)
    code = """
out = []
one, other = gpus()
for t in (0.5, 1.0, 1.9, 2.0):
    at(t)
    calls = [(power_mw, one), (power_mw, other), (n.nvmlDeviceGetTemperature, other, 0), (energy_mj, other)]
    out.append([code_of(*call) for call in calls])
fields = [field_mw(one, 186), field_mw(one, 185), field_mw(other, 186)]
names = [code_of(n.nvmlDeviceGetName, g) for g in (one, other, one)]
at(5.0)
print(json.dumps([out, fields, names, [code_of(n.nvmlDeviceGetHandleByIndex, i) for i in range(3)]]))
"""
    codes, fields, names, handles = read(scenario, code)
    assert codes == [[0, 0, 0, 0], [0, 15, 15, 0], [0, 15, 15, 0], [0, 0, 0, 0]]
    assert fields == [-3, 100_000, 100_000]
    assert names == [999, 999, 0]
    assert handles == [0, 28, 2]


def test_a_call_that_hangs_answers_afterwards_and_holds_up_no_other(read):
    scenario = Scenario().gpu("ideal", 100.0).fault("nvmlDeviceGetTotalEnergyConsumption", hang_ms=400, count=1)
    code = """
def hang():
    begun = time.monotonic()
    value = energy_mj(gpu)
    told.append([time.monotonic() - begun, value])
told = []
thread = threading.Thread(target=hang)
thread.start()
value, waits = power_mw(gpu), not told
thread.join()
print(json.dumps([value, waits, *told[0], energy_mj(gpu)]))
"""
    value_mw, before, hung_s, counter_mj, again_mj = read(scenario, code)
    assert (value_mw, before, counter_mj, again_mj) == (100_000, True, 1_000_000_000, 1_000_000_000)
    assert hung_s >= 0.4


def test_a_module_is_its_gpus_and_what_is_beside_them(read):
    scenario = Scenario().module(150.0)
    scenario.gpu("ideal", 200.0, module=0, counter="module").gpu("ideal", 300.0, module=0).gpu("ideal", 80.0)
    code = "at(2.0)\nout = [[field_mw(g, 186), field_mw(g, 186, 1), energy_mj(g), "
    code += "sum(m << 64 * i for i, m in enumerate(n.nvmlDeviceGetCpuAffinity(g, 2)))] for g in gpus()]\n"
    code += "ring = n.nvmlDeviceGetSamples(gpu, 7, 0)[1]\nprint(json.dumps([out, ring[-1].sampleValue.uiVal]))"
    (one, two, alone), ring_mw = read(scenario, code)
    assert one == [200_000, 650_000, 1_000_000_000 + 1_300_000, 2**72 - 1]
    assert two == [300_000, 650_000, 1_000_000_000 + 600_000, 2**72 - 1]
    assert alone == [80_000, -3, 1_000_000_000 + 160_000, 2**64 - 1]
    assert ring_mw == 650_000
    assert scenario.true_module_energy_j(0, [0, 1], ORIGIN_NS, ORIGIN_NS + 2_000_000_000) == pytest.approx(1300.0)


def test_slices_have_names_of_their_own_and_no_meter(read):
    code = """
slices = [n.nvmlDeviceGetMigDeviceHandleByIndex(gpu, i) for i in range(2)]
by_uuid = n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(slices[1]))
print(json.dumps([n.nvmlDeviceGetMigMode(gpu), n.nvmlDeviceGetMaxMigDeviceCount(gpu),
    [n.nvmlDeviceGetUUID(s) for s in slices], n.nvmlDeviceGetUUID(by_uuid),
    code_of(n.nvmlDeviceGetMigDeviceHandleByIndex, gpu, 2), code_of(power_mw, slices[0]),
    n.nvmlDeviceGetMigMode(gpus()[1]), n.nvmlDeviceGetMaxMigDeviceCount(gpus()[1])]))
"""
    own = [slice_uuid(gpu_uuid(0), place) for place in (0, 1)]
    assert read(Scenario().gpu(mig=2).gpu(), code) == [[1, 1], 7, own, own[1], 6, 3, [0, 0], 0]


def test_processes_are_listed_by_kind_and_self_is_who_reads(read):
    scenario = Scenario().gpu().process().process(7, memory=5).process(8, kind="G").gpu()
    code = """
lists = (n.nvmlDeviceGetComputeRunningProcesses, n.nvmlDeviceGetGraphicsRunningProcesses,
         n.nvmlDeviceGetMPSComputeRunningProcesses)
print(json.dumps([os.getpid(), [[[p.pid, p.usedGpuMemory] for p in one(gpu)] for one in lists],
    lists[0](gpus()[1]), n.nvmlDeviceGetMemoryInfo(gpu).used - n.nvmlDeviceGetMemoryInfo(gpus()[1]).used]))
"""
    gib = 1 << 30
    pid, listed, other, used = read(scenario, code)
    assert listed == [[[pid, 4 * gib], [7, 5]], [[8, 4 * gib]], []]
    assert (other, used) == ([], 8 * gib + 5)


def test_power_that_is_set_meanwhile_is_followed_exactly(nvml_simulator, tmp_path):
    log = PowerFile(tmp_path / "log", 100.0)
    scenario = Scenario().gpu("ideal", log)
    code = """
import json, os, time
import pynvml as n
from tests.support.nvml_simulator import PowerFile
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
log, out = PowerFile(os.environ["POWER_LOG"]), []
for watts in (300.0, 50.0, 700.0):
    begun = time.time_ns(), n.nvmlDeviceGetTotalEnergyConsumption(gpu), time.time_ns()
    log.set(watts)
    said_mw = n.nvmlDeviceGetPowerUsage(gpu)
    time.sleep(0.02)
    out.append([watts, said_mw, *begun, time.time_ns(), n.nvmlDeviceGetTotalEnergyConsumption(gpu), time.time_ns()])
print(json.dumps(out))
"""
    env = scenario.environment(tmp_path / "scenario", POWER_LOG=str(log.path))
    for watts, said_mw, a_ns, a_mj, b_ns, c_ns, c_mj, d_ns in run_script(code, env):
        assert said_mw == watts * 1e3
        assert scenario.true_energy_j(0, b_ns, c_ns) * 1e3 - 2 <= c_mj - a_mj
        assert c_mj - a_mj <= scenario.true_energy_j(0, a_ns, d_ns) * 1e3 + 2


def test_the_library_counts_its_users_and_reads_the_scenario_for_the_first(read):
    code = """
path = os.environ["NVML_SIMULATOR_SCENARIO"]
text = open(path).read()
open(path, "w").write(text + "device name=More%20than%201\\n")
n.nvmlInit(); n.nvmlShutdown()
still = n.nvmlDeviceGetCount()
n.nvmlShutdown()
gone = code_of(n.nvmlDeviceGetCount)
n.nvmlInit()
print(json.dumps([still, gone, n.nvmlDeviceGetName(gpus()[1]), code_of(n.nvmlDeviceGetHandleByUUID, "GPU-no")]))
"""
    assert read(Scenario().gpu(), code) == [1, 1, "More than 1", 6]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("devise name=x", "no such statement: devise"),
        ("device label=x", "no such key: label"),
        ("fault code=many", "no whole number: many"),
        ("hold from_s=1.5s", "no number: 1.5s"),
        ("power points=0", "no offset:watts: 0"),
        ("fault 15", "no key=value: 15"),
    ],
)
def test_a_mistake_in_a_scenario_is_named_and_no_driver_starts(nvml_simulator, tmp_path, line, complaint):
    env = Scenario().gpu().add_lines(line).environment(tmp_path / "scenario")
    code = "import ctypes, sys; sys.exit(ctypes.CDLL('libnvidia-ml.so.1').nvmlInit_v2() != 999)"
    done = subprocess.run(["python3", "-S", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert complaint in done.stderr


def test_without_a_compiler_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(build_library, "BUILDS", tmp_path)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    build_library.library_folder.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="no C compiler"):
            build_library.library_folder()
    finally:
        build_library.library_folder.cache_clear()
