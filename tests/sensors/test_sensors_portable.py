import os
import subprocess
import sys
import time

import pytest

from torchwatt.core.errors import SensorError
from torchwatt.sensors.readers.cputime import Family, Machine
from torchwatt.sensors.readers.portable import PortableFamily, PortableMachine


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_both_ways_to_count_cpu_time_and_memory_agree():
    pair = Family(os.getpid()), PortableFamily(os.getpid())
    before = [one.cpu_s() for one in pair]
    burn(0.3)
    used = [one.cpu_s() - was for one, was in zip(pair, before, strict=True)]
    assert used[0] == pytest.approx(used[1], abs=0.06)  # psutil counts in steps of 10 ms
    assert pair[0].rss_bytes() == pytest.approx(pair[1].rss_bytes(), rel=0.1)


def test_both_ways_to_count_the_machine_agree():
    pair = Machine(), PortableMachine()
    assert pair[0].busy_s() == pytest.approx(pair[1].busy_s(), abs=0.5)
    pair[0].close()


def test_children_count_and_keep_counting_when_they_have_ended():
    family = PortableFamily(os.getpid())
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        time.sleep(1.5)
        seen = family.cpu_s()
        child.communicate(b"\n")
    assert family.cpu_s() >= seen


def test_a_process_that_has_ended_is_lost():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    family = PortableFamily(child.pid)
    child.communicate(b"\n")
    with pytest.raises(SensorError, match="ended"):
        family.cpu_s()
