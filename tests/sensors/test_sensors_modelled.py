import math
import os
import subprocess
import sys
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from torchwatt.core.errors import SensorError
from torchwatt.sensors.load_model import (
    CpuInfo,
    modelled_source,
    nameplate_power,
    normalise_cpu_name,
    process_source,
    read_cpu_info,
    table_power_w,
)
from torchwatt.sensors.readers import open_reader
from torchwatt.sensors.readers.host_reader import HostReader, ModelledReader, machine_power_w, process_power_w
from torchwatt.sensors.readers.process_tree import ForkDetector, MachineCpu, ProcessTree, descendant_pids, process_cpu_s
from torchwatt.sensors.sampler import sampler_config


@pytest.mark.parametrize(("load", "share"), [(0, 0.12), (0.05, 0.22), (0.1, 0.32), (0.5, 0.75), (1, 1.02), (3, 1.02)])
def test_the_curve_goes_through_its_published_points(load, share):
    assert machine_power_w(load, 200.0) == pytest.approx(200.0 * share)


@given(st.lists(st.floats(0, 4), min_size=1, max_size=8), st.integers(1, 64), st.floats(0.02, 1))
def test_the_shares_of_all_processes_add_up_to_the_machine(process_s, cpus, interval_s):
    busy_s = math.fsum(process_s)
    assume(busy_s > 1e-9)
    shares = [
        process_power_w(process_s=s, busy_s=busy_s, interval_s=interval_s, cpus=cpus, nameplate_w=100.0)
        for s in process_s
    ]
    load = min(busy_s / (cpus * interval_s), 1.0)
    assert math.fsum(w for w, _ in shares) == pytest.approx(machine_power_w(load, 100.0))


def test_an_idle_process_gets_nothing_and_a_lagging_proc_stat_never_gives_more_than_the_machine():
    assert process_power_w(process_s=0, busy_s=0.1, interval_s=0.1, cpus=2, nameplate_w=100)[0] == 0
    assert process_power_w(process_s=0, busy_s=0, interval_s=0.1, cpus=2, nameplate_w=100) == (0.0, 0.0)
    watts, load = process_power_w(process_s=0.1, busy_s=0.0, interval_s=0.1, cpus=2, nameplate_w=100)
    assert load == 0.5
    assert watts == pytest.approx(75.0)


@pytest.mark.parametrize(
    ("told", "table"),
    [
        ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", "Intel Xeon Platinum 8259CL"),
        ("AMD EPYC 7742 64-Core Processor", "AMD EPYC 7742"),
        ("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz", "Intel Core i7-8700K"),
        ("11th Gen Intel(R) Core(TM) i7-11700K @ 3.60GHz", "Intel Core i7-11700K"),
        ("AMD Ryzen 7 5700U with Radeon Graphics", "AMD Ryzen 7 5700U"),
    ],
)
def test_names_meet_once_trademarks_and_clocks_are_gone(told, table):
    assert normalise_cpu_name(told) == normalise_cpu_name(table)


def test_the_table_knows_models_by_their_very_name_only():
    assert table_power_w("AMD EPYC 7742 64-Core Processor") == 225.0
    assert table_power_w("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz") == 95.0
    assert table_power_w("AMD EPYC") is None
    assert table_power_w("AMD EPYC 774") is None


def test_nameplates():
    bare = CpuInfo("AMD EPYC 7742 64-Core Processor", 2, 256, virtual=False)
    assert nameplate_power(bare, 225.0).watts == 450.0
    slice_ = CpuInfo(bare.model, 1, 4, virtual=True)
    assert nameplate_power(slice_, 225.0).watts == 16.0
    unknown = nameplate_power(CpuInfo("Strange", 1, 4, virtual=False), None)
    assert unknown.watts == 16.0
    assert "nameplate assumed" in unknown.notes[0]


def test_cpuinfo_is_read_and_its_absence_is_no_error(tmp_path):
    file = tmp_path / "cpuinfo"
    block = "processor\t: {}\nmodel name\t: X 1\nphysical id\t: {}\nflags\t\t: fpu hypervisor\n\n"
    file.write_text("".join(block.format(i, i // 2) for i in range(4)))
    assert read_cpu_info(str(file)) == CpuInfo("X 1", 2, 4, virtual=True)
    assert read_cpu_info(str(tmp_path / "absent")).threads == 1


def test_the_clock_of_a_process_agrees_with_its_own():
    before = time.process_time()
    seen = process_cpu_s(os.getpid())
    assert before <= seen + 1e-3
    assert seen <= time.process_time() + 1e-3


def test_children_count_while_they_live_and_after_and_samplers_do_not(monkeypatch):
    now = [0]
    family = ProcessTree(os.getpid(), clock_ns=lambda: now[0])
    busy = [sys.executable, "-c", "import sys; sum(range(6_000_000)); print(flush=True); sys.stdin.read()"]
    child = subprocess.Popen(busy, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert child.pid in descendant_pids(os.getpid())
    own_s, with_child_s = process_cpu_s(os.getpid()), family.cpu_s()
    child_s = process_cpu_s(child.pid)
    assert with_child_s >= own_s + child_s - 0.05
    monkeypatch.setattr("torchwatt.sensors.readers.process_tree.is_sampler", lambda pid: pid == child.pid)
    without = ProcessTree(os.getpid(), clock_ns=lambda: now[0])
    others_s = sum(process_cpu_s(pid) for pid in descendant_pids(os.getpid()) if pid != child.pid)  # of earlier tests
    assert without.cpu_s() < process_cpu_s(os.getpid()) + others_s + 0.05
    assert family.rss_bytes() > without.rss_bytes() > 1e6
    child.communicate()
    now[0] += 2_000_000_000
    assert family.cpu_s() >= with_child_s
    gone = ProcessTree(child.pid)
    with pytest.raises(SensorError, match="has ended"):
        gone.cpu_s()


def test_busy_time_grows():
    machine = MachineCpu()
    first = machine.busy_s()
    assert 0 < first <= machine.busy_s()
    machine.close()


def test_the_model_reports_the_mean_since_its_last_look(monkeypatch):
    now = [0]
    reader = ModelledReader({"pid": os.getpid(), "nameplate_w": 100.0, "cpus": 2}, clock_ns=lambda: now[0])
    used, busy = iter([1.0, 1.05]), iter([7.0, 7.1])
    monkeypatch.setattr(reader._family, "cpu_s", lambda: next(used))
    monkeypatch.setattr(reader._machine, "busy_s", lambda: next(busy))
    assert math.isnan(reader.read("cpu/power"))
    now[0] += 100_000_000
    assert reader.read("cpu/power") == pytest.approx(75.0 / 2)  # load 50 %, half of it ours
    assert reader.read("cpu/utilization") == pytest.approx(0.5)
    assert reader.read("cpu/process_cpu") == 1.05
    assert reader.read("ram/power") == pytest.approx(reader.read("ram/rss") / 1e9 * 0.375, rel=0.05)


def test_models_say_that_they_are_models():
    source = modelled_source(info=CpuInfo("Strange", 1, 4, virtual=False))
    assert source is not None
    cpu, ram = source.meters
    assert {cpu.provenance, ram.provenance} == {"modelled"}
    assert {cpu.scope, ram.scope} == {"process"}
    assert (cpu.accuracy_rel, ram.accuracy_rel) == ((-0.4, 0.4), (-0.5, 1.0))
    assert source.spec["nameplate_w"] == 16.0
    assert modelled_source(cpu=False, ram=False) is None


def test_the_process_source_reads_in_this_process():
    source = process_source()
    cpu, children, busy = source.meters[0].channels
    assert source.read(cpu) > source.read(children) >= 0
    assert source.read(busy) > 0
    source.close()


def test_children_are_looked_for_only_where_something_was_born(tmp_path, monkeypatch):
    scans, now = [], [0]
    monkeypatch.setattr(
        "torchwatt.sensors.readers.process_tree.descendant_pids", lambda pid: scans.append(now[0]) or []
    )
    family = ProcessTree(os.getpid(), clock_ns=lambda: now[0])
    (tmp_path / "loadavg").write_text("0.1 0.2 0.3 1/200 4711\n")
    family._forks = ForkDetector(str(tmp_path / "loadavg"))
    for now[0] in range(0, 12_000_000_000, 100_000_000):
        if now[0] == 3_500_000_000:
            (tmp_path / "loadavg").write_text("0.1 0.2 0.3 1/200 4712\n")
        family.cpu_s()
    assert scans == [0, 4_000_000_000]
    now[0] = 14_000_000_000
    family.cpu_s()
    assert scans[2:] == [now[0]]  # once in ten seconds whatever the kernel says
    family.close()


def test_a_search_through_hundreds_of_threads_is_made_less_often(monkeypatch):
    scans, now = [], [0]

    def slow(pid):
        scans.append(now[0])
        now[0] += 3_000_000
        return []

    monkeypatch.setattr("torchwatt.sensors.readers.process_tree.descendant_pids", slow)
    family = ProcessTree(os.getpid(), clock_ns=lambda: now[0])
    monkeypatch.setattr(family._forks, "any", lambda: True)
    while now[0] < 30_000_000_000:
        now[0] += 100_000_000
        family.cpu_s()
    assert 8 <= len(scans) <= 11
    family.close()


def test_the_clock_and_the_model_share_one_look_at_proc(monkeypatch):
    reads = []
    monkeypatch.setattr(MachineCpu, "busy_s", lambda self: reads.append(1) or 5.0 + len(reads))
    process, model = process_source(), modelled_source(info=CpuInfo("Strange", 1, 4, virtual=False))
    assert model is not None
    config = sampler_config((process, model), 16)
    (host,) = config["sources"]
    assert [tap["key"] for tap in host["taps"]] == [
        c.key for s in (process, model) for m in s.meters for c in m.channels
    ]
    reader = open_reader(host["spec"])
    assert isinstance(reader, HostReader)
    now = [0]
    reader._process._machine._clock_ns = reader._modelled._clock_ns = lambda: now[0]
    assert math.isnan(reader.read("cpu/power"))
    assert reader.read("process/busy_cpu") == 6.0
    now[0] += 100_000_000
    assert reader.read("cpu/power") > 0
    assert reader.read("process/busy_cpu") == 7.0
    assert reader.read("ram/power") == pytest.approx(reader.read("ram/rss") / 1e9 * 0.375)
    reader.close()
    other = modelled_source(pid=os.getppid(), info=CpuInfo("Strange", 1, 4, virtual=False))
    assert len(sampler_config((process, other), 16)["sources"]) == 2  # another process's model
