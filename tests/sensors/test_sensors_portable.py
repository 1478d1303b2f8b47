import os
import subprocess
import sys
import time

import pytest

from torchwatt.core.errors import SensorError
from torchwatt.sensors.readers.process_tree import MachineCpu, PortableMachineCpu, PortableProcessTree, ProcessTree


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_both_ways_to_count_cpu_time_and_memory_agree():
    pair = ProcessTree(os.getpid()), PortableProcessTree(os.getpid())
    before = [one.cpu_s() for one in pair]
    burn(0.3)
    used = [one.cpu_s() - was for one, was in zip(pair, before, strict=True)]
    assert used[0] == pytest.approx(used[1], abs=0.06)  # psutil counts in steps of 10 ms
    assert pair[0].rss_bytes() == pytest.approx(pair[1].rss_bytes(), rel=0.1)


def test_both_ways_to_count_the_machine_agree():
    machine, portable = MachineCpu(), PortableMachineCpu()
    before_s, seen_s, after_s = machine.busy_s(), portable.busy_s(), machine.busy_s()
    assert before_s - 0.1 <= seen_s <= after_s + 0.1  # ticks of 10 ms of each processor
    machine.close()


def test_children_count_and_keep_counting_when_they_have_ended():
    family = PortableProcessTree(os.getpid())
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it has worked
        own_s, seen = time.process_time(), family.cpu_s()
        assert seen > own_s + 0.25
        child.communicate(b"\n")
    assert family.cpu_s() >= seen


def test_a_process_that_has_ended_is_lost():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    family = PortableProcessTree(child.pid)
    child.communicate(b"\n")
    with pytest.raises(SensorError, match="ended"):
        family.cpu_s()
