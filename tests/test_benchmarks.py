"""Benchmarks that need a GPU: that they run to their end is tested on the CPU, and nothing about a GPU is."""

import re
from pathlib import Path

import pytest

from tests.support import ready

GPU = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"


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
