"""Real jobs: torchrun with simulated GPUs and a simulated package, one launch for many checks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support import ready
from tests.support.nvml_simulator import SCENARIO, PowerTrace, Scenario
from tests.support.powercap import FakePowercap
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.report import Report

SCRIPT = Path(__file__).with_name("train_job.py")
ROOT = SCRIPT.parents[2]
FORKED = "tests.distributed.forked"  # in place of torchrun, where the start of ranks is not what is tested
# Beside the one that ends well `make test` runs one of these, which the commit chooses.
JOBS = ("a killed rank", "two machines")


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which ranks find this tree, one thread each, and no job above them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    return {**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **more}


def torchrun(
    args: list[str], *, nproc: int = 4, options: tuple[str, ...] = (), module: str = "torch.distributed.run"
) -> list[str]:
    """Return the command of a launch."""
    return [
        sys.executable, "-m", module, "--nproc-per-node", str(nproc),
        *(options or ("--master-port", str(free_port()))), str(SCRIPT), *args,
    ]  # fmt: skip


@dataclass
class Launched:
    """What a launch left: its folder, its output, and the truth of its simulated meters."""

    folder: Path
    code: int
    output: str
    scenario: Scenario
    powercap: FakePowercap

    def gpu_j(self, report: Report, curve: EnergyCurve) -> float:
        """Return the true joules of a GPU over its curve."""
        offset_ns = report.start_unix_ns - report.start_ns
        assert curve.domain.index is not None
        return self.scenario.true_energy_j(curve.domain.index, curve.start_ns + offset_ns, curve.end_ns + offset_ns)

    def package_j(self, name: str, curve: EnergyCurve) -> float:
        """Return the true joules of a zone over its curve; on one machine the job's clock is ours."""
        return self.powercap.energy_j(name, curve.start_ns, curve.end_ns)


def launch(
    powercap: FakePowercap,
    folder: Path,
    args: list[str],
    ranks: int = 4,
    *,
    forked: bool = False,
) -> Launched:
    """Run a job to its end, on a machine with one GPU more than it has ranks.

    Where the start of ranks is not what is tested they are `forked`, as the module of that name says.
    """
    scenario = Scenario(origin_ns=time.time_ns())
    for n in range(ranks + 1):
        power = PowerTrace.bursts(80.0 + 10 * n, 400.0 + 50 * n, on_s=0.03 + 0.01 * n, period_s=0.13)
        uuid = f"GPU-aaaaaaaa-0000-0000-0000-00000000000{n}"
        scenario.gpu("ideal", power, noise_w=2.0, uuid=uuid).process("self")  # a rank's sampler is a child of it
    env = environment(TORCHWATT_POWERCAP_ROOT=str(powercap.root), CUDA_DEVICE_ORDER="PCI_BUS_ID")
    simulated = {
        name: value
        for name, value in scenario.environment(folder.with_suffix(".scenario")).items()
        if name in {SCENARIO, "LD_LIBRARY_PATH"}
    }
    command = torchrun([str(folder), *args], nproc=ranks)
    if forked:
        from tests.distributed.forked import main

        done = ready.call(main, command[3:], timeout_s=240, env={**env, **simulated})
    else:
        done = subprocess.run(command, env={**env, **simulated}, capture_output=True, text=True, timeout=240)
    return Launched(folder, done.returncode, done.stdout + done.stderr, scenario, powercap)
