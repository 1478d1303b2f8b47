"""CPU time of child processes is work: the parent's waiting is not called idle while they compute."""

import json
import subprocess
import sys

import pytest

from tests.support.ready import run_script
from torchwatt.attribution.owned_intervals import IDLE_MIN_NS
from torchwatt.core.terms import IDLE, UNATTRIBUTED

WAITING = """
import json, multiprocessing as mp, resource, time
import torchwatt as tw

def used_by_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

with tw.profile() as run:
    before_s = used_by_children()
    for _ in range({rounds}):
        child = mp.get_context("fork").Process(target=burn, args=({seconds},))
        child.start()
        child.join()
    truth_s = used_by_children() - before_s
rows = run.layers
print(json.dumps({{
    "truth_s": truth_s,
    "rows": sorted(set(rows.fqn)),
    "messages": {{e.code: e.message for e in run.report.events}},
    "text": str(run),
}}))
"""


@pytest.mark.parametrize(("rounds", "seconds"), [(1, 1.5), (6, 0.25)], ids=["one child", "children of a moment"])
def test_a_parent_that_waits_for_its_children_is_not_idle(rounds, seconds):
    assert rounds * seconds * 1e9 > IDLE_MIN_NS
    found = run_script(WAITING.format(rounds=rounds, seconds=seconds))
    assert found["rows"] == [UNATTRIBUTED]
    used_s = float(found["messages"]["CHILD_PROCESSES"].partition("used ")[2].split()[0])
    # The kernel's own account of the same children: forking them takes as long as the machine is busy.
    assert used_s == pytest.approx(found["truth_s"], abs=0.1)  # ticks of 10 ms, and three digits
    assert "child processes used" in found["text"].partition("carbon")[0]


SLEEPING = """
import json, time
import torchwatt as tw
with tw.profile() as run:
    time.sleep(1.5)
print(json.dumps({"rows": sorted(set(run.layers.fqn)), "codes": [e.code for e in run.report.events]}))
"""


def test_a_process_that_sleeps_is_still_idle():
    found = run_script(SLEEPING)
    assert found["rows"] == [IDLE]
    assert "CHILD_PROCESSES" not in found["codes"]


POOL = """
import json, multiprocessing as mp, time
import torchwatt as tw

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

if __name__ == "__main__":
    with mp.get_context({how!r}).Pool(2) as pool:
        pool.map(burn, [0.01, 0.01])
        with tw.profile(layers="off") as run:
            pool.map(burn, [0.8, 0.8])
    rows = run.layers
    print(json.dumps({{"rows": sorted(set(rows.fqn)), "text": str(run)}}))
"""


@pytest.mark.parametrize("how", ["fork", "forkserver"])
def test_workers_that_were_there_before_the_run_are_named_and_not_idle(how, tmp_path):
    (tmp_path / "pool.py").write_text(POOL.format(how=how))
    done = subprocess.run([sys.executable, tmp_path / "pool.py"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == [UNATTRIBUTED]
    assert "child processes used" in found["text"]
