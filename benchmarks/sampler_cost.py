"""What the sampler process costs: CPU seconds a second of metering, and how often it wakes up.

    PYTHONPATH=. python benchmarks/sampler_cost.py [--seconds 20] [--case modelled powercap nvml1 nvml8]

`modelled`: what a machine without any meter is given (models and the process's clocks). `powercap`: two counters in a
simulated powercap tree, beside the process's clocks. `nvml1`, `nvml8`: GPUs of the tests' simulated NVML
library, whose calls cost less than a driver's, so what is shown is our own part. CPU time is the sampler
process's by its own clock, from two seconds after the start on; wake-ups are its threads' voluntary switches.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.nvml_simulator import PowerTrace, Scenario
from tests.support.powercap import FakePowercap

from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.readers.process_tree import process_cpu_s

CASES = ("modelled", "powercap", "nvml1", "nvml8")
SETTLE_S = 2.0


def wakeups(pid):
    """Return how often all threads of a process have gone to sleep of their own will."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    return total


def sample(seconds):
    """Sample what this process's environment shows and return what that cost."""
    modelled = not os.environ.get("SAMPLER_COST_BARE")
    feed = Sampler(discover(modelled=modelled, perf=False))
    feed.start()
    time.sleep(SETTLE_S)
    pid = feed.sampler_pid
    cpu_s, woken, began_s = process_cpu_s(pid), wakeups(pid), time.monotonic()
    time.sleep(seconds)
    cpu_s, woken, wall_s = process_cpu_s(pid) - cpu_s, wakeups(pid) - woken, time.monotonic() - began_s
    recording = feed.stop()
    reads = sum(recording.stats.reads.values()) / (wall_s + SETTLE_S)
    print(json.dumps({"cpu": cpu_s / wall_s, "wakeups": woken / wall_s, "reads": reads}))


def run(case, seconds, folder):
    env = {**os.environ, "TORCHWATT_POWERCAP_ROOT": str(folder / "none"), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    command = [sys.executable, __file__, "--sample", str(seconds)]
    if case == "powercap":
        with FakePowercap(folder / "powercap") as tree:
            env["TORCHWATT_POWERCAP_ROOT"] = str(tree.root)
            return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    if case.startswith("nvml"):
        scenario = Scenario()
        for _ in range(int(case[4:])):
            scenario.gpu("hopper", PowerTrace.bursts())
        env = scenario.environment(folder / "scenario") | env | {"SAMPLER_COST_BARE": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--sample", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.sample:
        sample(asked.sample)
        return
    print(f"{'case':10} {'% of a core':>12} {'wake-ups/s':>11} {'readings/s':>11}")
    for case in asked.case:
        with tempfile.TemporaryDirectory() as folder:
            out = run(case, asked.seconds, Path(folder))
        found = json.loads(out)
        print(f"{case:10} {found['cpu']:12.3%} {found['wakeups']:11.1f} {found['reads']:11.1f}", flush=True)


if __name__ == "__main__":
    main()
