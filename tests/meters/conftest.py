from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REQUIRE_SIMHW
from tests.support.ready import run_script

SOURCE = Path(__file__).resolve().parents[1] / "support" / "simulated" / "simnvml.c"


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the simulated library, built from this repository."""
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get(REQUIRE_SIMHW):
            pytest.fail(f"{REQUIRE_SIMHW} is set, but there is no C compiler (cc)")
        pytest.skip("no C compiler (cc) to build the simulated NVML")
    folder = tmp_path_factory.mktemp("nvml")
    flags = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1"]
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE), "-lm", "-lpthread"], check=True)
    return folder


@pytest.fixture
def run_on(nvml_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a runner of Python code on a machine with the GPUs of a scenario, whose time begins now."""

    def run(scenario: str, code: str, **env: str) -> dict[str, Any]:
        epoch_ns = time.time_ns()
        path = tmp_path / "scenario"
        path.write_text(f"epoch {epoch_ns}\n{scenario}\n")
        settings = {
            "SIMNVML_SCENARIO": str(path),
            "LD_LIBRARY_PATH": str(nvml_folder),
            "TORCHWATT_POWERCAP_ROOT": str(tmp_path / "none"),
            "OMP_NUM_THREADS": "1",
        }
        found = run_script(code, os.environ | settings | env, timeout_s=120.0)
        return {**found, "epoch_ns": epoch_ns}

    return run
