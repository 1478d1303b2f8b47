"""Benchmarks run to their end: those that need a GPU on the CPU, where nothing about a GPU is tested."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ready

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / "benchmarks" / "gpu"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_the_live_view_is_timed_with_and_without_itself():
    command = [sys.executable, "benchmarks/live_view.py", "--seconds", "8", "--modules", "40"]
    env = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr  # 1: beyond a limit, as on a busy machine
    found = re.findall(
        r"^(live view|--no-live), 40 modules .*kernel CPU ([\d.]+)%.* message (\d+) KB", done.stdout, re.MULTILINE
    )
    assert [name for name, _, _ in found] == ["live view", "--no-live"]
    assert float(found[0][1]) > float(found[1][1])
    assert int(found[0][2]) > 0


def test_experts_and_a_short_step_are_compared_part_by_part(tmp_path):
    done = ready.run_path(GPU / "experts.py", tmp_path, "--device", "cpu", "--seconds", 0.5)
    assert done.returncode == 0, done.stderr
    experts, short = done.stdout.split("1 ms:")
    for text in (experts, short):
        counted, true = re.search(r"steps (\d+) for (\d+)", text).groups()
        assert counted == true
        shares = {part: float(share) for part, share in re.findall(r"^    (\S+) +([\d.]+) %", text, re.MULTILINE)}
        assert sum(shares[phase] for phase in ("forward", "backward", "optimizer")) == pytest.approx(100, abs=0.2)
    calls = {part: (true, told) for part, true, told in re.findall(r"(layers\S+).* %   (\d+) (\S+)", experts)}
    assert calls["layers.0.experts.0"][0] == re.search(r"steps (\d+)", experts)[1]  # the common one
    assert all(told in {true, "-"} for true, told in calls.values())
    assert {path.name for path in tmp_path.iterdir()} == {"experts-layers.csv", "1-ms-layers.csv"}
