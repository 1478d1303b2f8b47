"""Two real processes on one simulated card: the store and the lake add up what the card used, not twice that."""

import time
from concurrent.futures import ThreadPoolExecutor
from math import fsum

import pytest

from tests.conftest import run_script
from tests.support.nvml_simulator import PowerTrace, Scenario
from torchwatt.audit.fleet import open_lake, rollup
from torchwatt.audit.fleet.ingestion import ingest
from torchwatt.audit.run_index import monthly_sums
from torchwatt.audit.store import Store

POWER_W = 500.0
PROGRAM = """
import json, time
from pathlib import Path
import torchwatt as tw
there = Path({there!r})
with tw.profile(layers="off", live="off", baseline_s=0.0, keep={store!r}) as run:
    start = time.time()
    (there / "{name}").touch()
    while len(list(there.iterdir())) < 2:  # both are measured while both run
        time.sleep(0.01)
    time.sleep(1.0)
    end = time.time()
print(json.dumps([start, end]))
"""


@pytest.mark.simhw
def test_two_processes_on_one_card_use_what_the_card_used(nvml_simulator, tmp_path):
    there, kept = tmp_path / "there", tmp_path / "store"
    there.mkdir()
    scenario = Scenario(origin_ns=time.time_ns() - 10**12).gpu("ideal", PowerTrace.constant(POWER_W)).process("self")
    env = scenario.environment(tmp_path / "scenario", TORCHWATT_POWERCAP_ROOT=str(tmp_path / "none"))

    def program(name):
        return run_script(PROGRAM.format(there=str(there), store=str(kept), name=name), env, 100.0)

    with ThreadPoolExecutor(2) as pool:
        times = list(pool.map(program, "ab"))
    runs = Store(kept).runs()
    said_j = fsum(run.energy_j for run in runs)
    union_s = max(end for _, end in times) - min(start for start, _ in times)
    assert said_j > 1.3 * POWER_W * union_s or min(e - s for s, e in times) < 0.6 * union_s  # two say the same joules
    (group,) = monthly_sums(runs)
    assert group.total.energy_j == pytest.approx(POWER_W * union_s, rel=0.1)
    assert any("shared the same devices" in why for why in group.total.shared)
    lake = open_lake(tmp_path / "lake")
    ingest(lake, [kept])
    rows = rollup(lake, "month").to_pylist()
    assert {row["adds"] for row in rows} == {"shared"}
    assert fsum(row["energy_j"] for row in rows) == pytest.approx(group.total.energy_j, rel=1e-9)
