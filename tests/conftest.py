from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import chosen, ready
from tests.support.powercap import FakePowercap

REPOSITORY = Path(__file__).resolve().parents[1]
# Where it is there, jsonschema builds a grammar of IRIs for two seconds, which no schema here asks for.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
# Set where a missing simulator or browser is a failure and not a skip: in CI.
REQUIRE_SIMHW = "TORCHWATT_REQUIRE_SIMHW"
REQUIRE_TRACES = "TORCHWATT_REQUIRE_TRACES"
# How long an example takes to make says how busy the machine is, and nothing about the code.
settings.register_profile("torchwatt", suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
settings.register_profile("heavy", settings.get_profile("torchwatt"), max_examples=300)  # by `make test-all`
settings.load_profile("torchwatt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: two workers then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one worker, and all that look at JupyterLab to the same one: it starts once."""
    from xdist.scheduler import LoadFileScheduling

    class OneBrowser(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = "tests/browser/"
            return folder if nodeid.startswith(folder) else super()._split_scope(nodeid)

    return OneBrowser(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what all the imports made: hundreds of tests collect, or fork."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Say what chose the cases that run, so that they can be run again."""
    return f"cases of large sets: {chosen.CASES}={chosen.commit()} (all with {chosen.CASES}={chosen.ALL})"


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_test() -> Iterator[None]:
    """Wait for our threads that a test started: those left would be another test's failure."""
    before = _helper_threads()
    yield
    end_s = time.monotonic() + 20
    while (left := _helper_threads() - before) and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not left, "threads that this test left behind"


def _helper_threads() -> Counter[str]:
    module = sys.modules.get("torchwatt.disk.helper_thread")
    return Counter(module.helper_threads() if module else ())


def run_script(code: str, env: dict[str, str] | None = None, timeout_s: float = 40.0) -> dict[str, Any]:
    """Run Python in its own process and return the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _skip(reason: str) -> None:
    if os.environ.get(REQUIRE_SIMHW):
        pytest.fail(f"{REQUIRE_SIMHW} is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def simhw() -> Callable[[str], ModuleType]:
    """Return a loader of the simulator's modules by name; skips where there is no simulator."""
    folder = Path(os.environ.get("TORCHWATT_SIMHW", REPOSITORY.parent / "shared" / "simhw"))
    if not (folder / "simnvml.py").is_file():
        _skip(f"no simulated hardware in {folder}; name its folder by TORCHWATT_SIMHW")

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def simnvml(simhw: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the module that writes scenarios, its library built; skips where there is no compiler."""
    if shutil.which("cc") is None:
        _skip("no C compiler (cc) to build the simulated NVML")
    module = simhw("simnvml")
    module.libdir = module.build(tmp_path_factory.mktemp("simnvml"))
    return module


# The time of a scenario begins with the code, however long its process took to start.
BEGINS_NOW = """
import os, time
from pathlib import Path
path = Path(os.environ["SIMNVML_SCENARIO"])
path.write_text("epoch %d\\n%s" % (time.time_ns(), path.read_text().partition("\\n")[2]))
"""


@pytest.fixture
def run_sim(simnvml: ModuleType, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a runner of code that finds the simulated library, as its sampler does, which inherits LD_LIBRARY_PATH.

    On a busy machine a run may begin to sample after the scenario's first fault, which its code tells by
    `sampling_since_ns`. Such a run says nothing, and is run again.
    """

    def run(scenario: Any, code: str, **env: str) -> dict[str, Any]:
        env = {
            "TORCHWATT_POWERCAP_ROOT": str(tmp_path / "none"),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # simulated GPUs have different names
            **env,
        }
        path = tmp_path / "scenario"
        for _ in range(4):
            found = ready.run_script(BEGINS_NOW + code, scenario.env(path, simnvml.libdir, **env))
            text = path.read_text()
            scenario.epoch = int(text.split()[1])
            first_s = min(map(float, re.findall(r" from=([0-9.]+)", text)), default=math.inf)
            if first_s == math.inf or (found["sampling_since_ns"] - scenario.epoch) / 1e9 < first_s - 0.3:
                return found
        pytest.fail(f"four runs began to sample {first_s} s or more after their process began")

    return run


@pytest.fixture(scope="session")
def traces_dir() -> Path:
    """Return the folder of real recordings, which are others' data and not part of this repository."""
    folder = Path(os.environ.get("TORCHWATT_TRACES", REPOSITORY.parent / "shared" / "traces"))
    if not (folder / "index.json").is_file():
        reason = f"no recordings in {folder}; name their folder by TORCHWATT_TRACES"
        if os.environ.get(REQUIRE_TRACES):
            pytest.fail(f"{REQUIRE_TRACES} is set, but {reason}")
        pytest.skip(reason)
    return folder


@pytest.fixture
def powercap(tmp_path: Path) -> Iterator[FakePowercap]:
    with FakePowercap(tmp_path / "powercap") as fake:
        yield fake
