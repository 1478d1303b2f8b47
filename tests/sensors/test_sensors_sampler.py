import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run_script
from tests.support.powercap import FakePowercap
from torchwatt.core.errors import SensorError
from torchwatt.disk.helper_thread import helper_threads
from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.load_model import modelled_source, process_source
from torchwatt.sensors.protocol import Discovery, MeteredSource, merge_discoveries
from torchwatt.sensors.rapl import discover_rapl
from torchwatt.sensors.readers.process_tree import descendant_pids, process_cpu_s
from torchwatt.sensors.recording_builder import BoundaryReader, read_boundaries

ENERGY = "cpu:0/energy"


def gone(pid, within_s=30.0):
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def open_files():
    return sorted(str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())


def our_threads():
    return helper_threads()


@pytest.fixture
def found(powercap):
    return merge_discoveries([discover_rapl(powercap.root), Discovery((process_source(),))])


@pytest.mark.alone  # readings and joules of a tree that this process writes in real time
def test_a_run_meters_what_was_used_and_leaves_nothing_behind(powercap, found):
    before = open_files()
    feed = Sampler(found)
    feed.start()
    pid = feed.sampler_pid
    assert pid is not None
    powercap.set("package-0", 200.0)
    time.sleep(0.6)
    feed.read_now()
    recording = feed.stop()
    assert gone(pid)
    assert our_threads() == []
    assert open_files() == before
    assert recording.stats.mode == "process"
    assert recording.unavailable == ()
    series = recording.get(ENERGY)
    assert series is not None
    used_j = (series.raw[-1] - series.raw[0]) * 1e-6
    truth_j = powercap.energy_j("package-0", int(series.t_ns[0]), int(series.t_ns[-1]))
    assert used_j == pytest.approx(truth_j, rel=0.15)  # the fake counter itself lags on a busy machine
    assert np.all(np.diff(series.raw) >= 0)
    assert np.all(np.diff(series.t_ns) > 0)
    assert recording.stats.reads[ENERGY] >= 15
    assert len(series) == recording.stats.reads[ENERGY] + 4  # opening, start, mark and stop were read here
    assert 0 < recording.stats.cpu_s < 2
    assert recording.stats.wall_s > 0.6
    assert recording.stats.call_s[ENERGY] > 0
    assert len(recording.anchors) >= 2
    assert feed.stop() is recording
    feed.read_now()
    feed.start()
    assert feed.sampler_pid is None


def test_gauges_of_the_process_grow_and_do_not_count_the_sampler(found):
    feed, other = Sampler(found), Sampler(found)
    children = descendant_pids(os.getpid())  # of earlier tests
    feed.start()
    other.start()
    sum(i * i for i in range(1_500_000))
    recording = feed.stop()
    other.stop()
    cpu, busy = recording.get("process/process_cpu"), recording.get("process/busy_cpu")
    assert cpu is not None
    assert busy is not None
    assert np.all(np.diff(cpu.raw[1:]) >= 0)
    assert np.all(np.diff(busy.raw) >= 0)
    others_s = sum(process_cpu_s(pid) for pid in children if Path(f"/proc/{pid}").exists())
    assert cpu.raw[-1] <= time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) + others_s + 0.05


def test_a_snapshot_is_live_and_any_thread_may_ask(found):
    feed = Sampler(found)
    assert feed.snapshot().series == ()
    feed.start()
    sizes = []

    def ask():
        for _ in range(5):
            sizes.append(len(feed.snapshot().get(ENERGY)))
            time.sleep(0.05)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    since_ns = time.monotonic_ns() - 50_000_000
    late = feed.snapshot(since_ns).get(ENERGY)
    assert late.t_ns.min(initial=since_ns) >= since_ns
    recording = feed.stop()
    assert max(sizes) > min(sizes)
    assert len(recording.get(ENERGY)) >= max(sizes)
    assert feed.snapshot() is recording


@pytest.mark.alone  # gaps in real time
def test_a_sampler_that_is_full_thins_and_still_covers_the_run(found):
    feed = Sampler(found, capacity=16)
    feed.start()
    start_ns = time.monotonic_ns()
    time.sleep(1.0)
    recording = feed.stop()
    series = recording.get(ENERGY)
    assert len(series) <= 16 + 4
    assert series.t_ns[0] <= start_ns
    assert series.t_ns[-1] >= start_ns + 1_000_000_000
    assert series.channel.period_ns > 10_000_000
    assert "SAMPLER_THINNED" in [e.code for e in recording.events]


def test_an_interrupt_meant_for_the_user_leaves_the_sampler_alone(found):
    feed = Sampler(found)
    feed.start()
    os.kill(feed.sampler_pid, signal.SIGINT)
    time.sleep(0.3)
    assert not gone(feed.sampler_pid, 0.2)
    assert os.getsid(feed.sampler_pid) != os.getsid(0)
    assert feed.stop().stats.mode == "process"


def test_threads_take_over_from_a_sampler_that_was_killed(found):
    feed = Sampler(found)
    feed.start()
    time.sleep(0.2)
    os.kill(feed.sampler_pid, signal.SIGKILL)
    end_s = time.monotonic() + 5
    while feed.sampler_pid is not None and time.monotonic() < end_s:  # a killed process takes a moment to end
        feed.read_now()
    taken_over_ns = time.monotonic_ns()
    time.sleep(0.3)
    recording = feed.stop()
    assert recording.stats.mode == "thread"
    assert "SAMPLER_THREAD" in [e.code for e in recording.events]
    series = recording.get(ENERGY)
    assert np.sum(series.t_ns > taken_over_ns) > 5
    assert np.sum(series.t_ns < taken_over_ns) > 5
    assert our_threads() == []


@pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/false", "", None])
def test_where_no_process_can_be_started_threads_sample_and_say_so(found, monkeypatch, executable):
    before = open_files()
    monkeypatch.setattr(sys, "executable", executable)
    feed = Sampler(found)
    feed.start()
    time.sleep(0.3)
    recording = feed.stop()
    assert recording.stats.mode == "thread"
    assert [e.code for e in recording.events].count("SAMPLER_THREAD") == 1
    assert len(recording.get(ENERGY)) > 10
    assert recording.stats.cpu_s > 0
    assert our_threads() == []
    assert open_files() == before


def test_threads_may_be_asked_for(found):
    feed = Sampler(found, mode="thread")
    feed.start()
    time.sleep(0.2)
    recording = feed.stop()
    assert (recording.stats.mode, feed.sampler_pid) == ("thread", None)
    assert [e.severity for e in recording.events if e.code == "SAMPLER_THREAD"] == ["info"]


def test_a_discovery_without_any_meter_gives_an_empty_recording():
    feed = Sampler(Discovery())
    feed.start()
    recording = feed.stop()
    assert (recording.meters, recording.series) == ((), ())


def test_a_forked_child_inherits_nothing_that_runs(found):
    feed = Sampler(found)
    feed.start()
    pid = os.fork()
    if pid == 0:  # leave by _exit whatever happens, or pytest would run twice
        code = 1
        try:
            feed.read_now()
            empty = feed.snapshot().series == () and feed.stop().series == ()
            del feed
            gc.collect()
            code = 0 if empty else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    time.sleep(0.1)
    assert not gone(feed.sampler_pid, 0.1)
    assert len(feed.stop().get(ENERGY)) > 5


def test_a_child_that_lives_on_does_not_keep_the_sampler(found):
    """A forked worker holds a copy of the pipe, so its end alone would never be seen."""
    feed = Sampler(found)
    feed.start()
    sampler = feed.sampler_pid
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    try:
        start_s = time.monotonic()
        feed.stop()
        assert gone(sampler, 10)
        assert time.monotonic() - start_s < 20  # the worker lives for 30 s
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_sampler_that_is_dropped_ends(found):
    feed = Sampler(found)
    feed.start()
    pid = feed.sampler_pid
    del feed
    gc.collect()
    assert gone(pid)
    end_s = time.monotonic() + 5
    while our_threads() and time.monotonic() < end_s:
        time.sleep(0.02)
    assert our_threads() == []


ORPHAN = """
import sys, time, os
from torchwatt.sensors import Sampler, discover
feed = Sampler(discover(nvml=False, perf=False, modelled=False))
feed.start()
if os.fork() == 0:
    time.sleep(20)  # a worker that survives and holds the pipe
    os._exit(0)
print(feed.sampler_pid, flush=True)
time.sleep(30)
"""


def test_the_sampler_dies_with_its_parent_even_if_a_worker_lives_on(powercap):
    env = {**os.environ, "TORCHWATT_POWERCAP_ROOT": str(powercap.root)}
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, env=env, process_group=0) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid, 0.1)
        parent.kill()
        parent.wait()
        assert gone(pid)
        os.killpg(parent.pid, signal.SIGKILL)


def test_an_exit_without_stop_leaves_no_process_and_no_noise(powercap):
    code = ORPHAN.split("if os.fork", maxsplit=1)[0] + "print(feed.sampler_pid, flush=True)"
    env = {**os.environ, "TORCHWATT_POWERCAP_ROOT": str(powercap.root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stderr == ""
    assert gone(int(done.stdout))


def test_the_sampler_process_stays_light(powercap, found):
    """Neither numpy nor pandas nor torch: by what is mapped in the process, and by what its modules import."""
    model = modelled_source()
    assert model is not None
    feed = Sampler(merge_discoveries([found, Discovery((model,))]))
    feed.start()
    maps = Path(f"/proc/{feed.sampler_pid}/maps").read_text()
    feed.stop()
    assert not [name for name in ("numpy", "pandas", "torch/", "libtorch") if name in maps]
    loaded = run_script(
        "import sys, json, pynvml; from torchwatt.sensors import sampler_main; from importlib import import_module\n"
        "from torchwatt.sensors.readers import _HOMES\n"
        "for home, _ in _HOMES.values(): import_module(home)\n"
        "print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    )
    assert not {"numpy", "pandas", "torch", "codecarbon", "psutil"} & set(loaded)


class Stuck:
    """A source that hangs, or raises, in the process that reads its edges."""

    def __init__(self, found, monkeypatch, action):
        self.source = found.sources[0]
        outer = self

        class Reader:
            def read(self, key):
                return outer.action()

            def close(self):
                pass

        self.action = action
        monkeypatch.setattr("torchwatt.sensors.protocol.open_reader", lambda spec: Reader())


def test_an_edge_that_hangs_costs_its_deadline_once_and_is_told(found, monkeypatch):
    release = threading.Event()
    stuck = Stuck(found, monkeypatch, lambda: float(release.wait(100)))
    reader = BoundaryReader(stuck.source)
    start_s = time.monotonic()
    assert [(s, c) for s, c, _ in read_boundaries([reader], 1.0)] == [("cpu:0, dram:0", "EDGE_READ_TIMEOUT")]
    assert 0.9 < time.monotonic() - start_s < 20
    reader.ask().requested_s -= 60
    start_s = time.monotonic()
    assert read_boundaries([reader], 60.0)[0][1] == "EDGE_READ_TIMEOUT"
    assert time.monotonic() - start_s < 20  # it is known to hang: nobody waits another minute
    release.set()
    reader.close()
    assert len(reader.edges[ENERGY]) == 1  # a late answer still has its own time


@pytest.mark.parametrize("error", [SensorError("gone", code="SENSOR_LOST"), RuntimeError("broken")])
def test_an_edge_that_fails_is_told_with_its_code(found, monkeypatch, error):
    def fail():
        raise error

    reader = BoundaryReader(Stuck(found, monkeypatch, fail).source)
    codes = {code for _, code, _ in read_boundaries([reader], 5)}
    assert codes == {getattr(error, "code", "SENSOR_ERROR")}
    reader.close()


def test_sources_travel_as_json(found):
    for source in found.sources:
        again = MeteredSource(source.meters, json.loads(json.dumps(source.spec)))
        assert again.read(source.meters[0].channels[0]) > 0
        again.close()


@pytest.mark.alone  # gaps in real time
def test_a_sampler_process_that_dies_is_replaced_at_once(tmp_path):
    with FakePowercap(tmp_path, {"intel-rapl:0": ("package-0", 40.0)}) as tree:
        feed = Sampler(discover(powercap_root=tree.root, nvml=False, modelled=False))
        feed.start()
        try:
            os.kill(feed.sampler_pid, signal.SIGKILL)
            time.sleep(0.6)
        finally:
            recording = feed.stop()
    assert feed.sampler_pid is None
    assert np.diff(recording.get("cpu:0/energy").t_ns).max() < 300_000_000
    assert "SAMPLER_THREAD" in {event.code for event in recording.events}


def test_a_sampler_that_got_no_processor_at_the_end_of_a_run_is_a_gap(found, monkeypatch):
    """It stops before it could count what it missed."""
    monkeypatch.setattr("torchwatt.sensors.sampler.SILENT_NS", 200_000_000)
    monkeypatch.setattr("torchwatt.sensors.sampler_process.SamplerProcess.is_suspended", lambda self: False)
    feed = Sampler(found)
    feed.start()
    os.kill(feed.sampler_pid, signal.SIGSTOP)
    time.sleep(0.8)
    events = feed.stop().events
    assert [event.subject for event in events if event.code == "SAMPLE_GAP"] == ["run"]
