"""The programs print and end under torchwatt as they do without it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.programs.catalog import PROGRAMS
from tests.programs.test_laws import TIMEOUT_S, USUAL, is_installed
from tests.support import ready

REPOSITORY = Path(__file__).resolve().parents[2]
AT_ONCE = 2
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * TIMEOUT_S)]
STATUS = 3


@pytest.mark.parametrize("heavy", [False, pytest.param(True, marks=pytest.mark.heavy)], ids=["usual", "heavy"])
def test_output_and_exit_status_are_those_of_plain_python(heavy):
    names = [name for name in PROGRAMS if (name not in USUAL) == heavy and is_installed(name)]
    script = ["tests.programs.plain", *names, "--length", "0.05", "--status", str(STATUS)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        profiled = ["torchwatt", "run", "--quiet", "--no-journal", "-m", *script]
        plain, profiled = pool.map(lambda arguments: run_module(*arguments), [script, profiled])
    assert plain.returncode == STATUS, plain.stderr
    assert (profiled.returncode, profiled.stdout) == (STATUS, plain.stdout), profiled.stderr


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY, env={**os.environ, **ready.ONE_THREAD}, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
