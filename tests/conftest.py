from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import chosen, ready
from tests.support.examples import COMMIT, HEAVY
from tests.support.nvml_simulator import Scenario, library_folder, origin_ns
from tests.support.powercap import FakePowercap

REPOSITORY = Path(__file__).resolve().parents[1]
# Where it is there, jsonschema builds a grammar of IRIs for two seconds, which no schema here asks for.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
# Set where a missing compiler or browser is a failure and not a skip: in CI.
REQUIRE_COMPILER = "TORCHWATT_REQUIRE_COMPILER"
# How long an example takes to make says how busy the machine is, and nothing about the code.
settings.register_profile("torchwatt", suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=COMMIT)
settings.register_profile("heavy", settings.get_profile("torchwatt"), max_examples=HEAVY)  # by `make test-all`
settings.load_profile("torchwatt")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so do jobs in the background of a script; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


os.environ["COLUMNS"] = "100"  # else reports are as wide as the terminal, where there is one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: two workers then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let all workers fork from one process that has imported torch: it takes seconds."""
    node.workerinput["ready"] = ready.shared()


def pytest_configure(config: pytest.Config) -> None:
    if address := getattr(config, "workerinput", {}).get("ready"):
        ready.use_shared(address)


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


@pytest.fixture(scope="session")
def nvml_simulator() -> Path:
    """Return the folder of the simulated NVML library, built; without a C compiler its tests are skipped."""
    try:
        return library_folder()
    except FileNotFoundError as error:
        if os.environ.get(REQUIRE_COMPILER):
            pytest.fail(f"{REQUIRE_COMPILER} is set, but there is {error}")
        pytest.skip(str(error))


# The time of a scenario begins with the code, however long its process took to start.
BEGIN_NOW = "from tests.support.nvml_simulator import begin_now\nbegin_now()\n"


@pytest.fixture
def run_on_gpus(nvml_simulator: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a runner of code on a machine with simulated GPUs, which gives the JSON of the code's last line.

    On a busy machine a run may begin to sample after the scenario's first fault, which its code tells by
    `sampling_since_ns`. Such a run says nothing, and is run again.
    """

    def run(scenario: Scenario, code: str, *, timeout_s: float = 60.0, **env: str) -> Any:
        env = {
            "TORCHWATT_POWERCAP_ROOT": str(tmp_path / "none"),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # simulated GPUs have different names
            **env,
        }
        path, first_s = tmp_path / "scenario", scenario.first_fault_s
        code = code if scenario.clock else BEGIN_NOW + code
        for _ in range(4):
            found = ready.run_script(code, scenario.environment(path, **env), timeout_s)
            scenario.origin_ns = origin_ns(path)
            if first_s is None or (found["sampling_since_ns"] - scenario.origin_ns) / 1e9 < first_s - 0.3:
                return found
        pytest.fail(f"four runs began to sample {first_s} s or more after their process began")

    return run


@pytest.fixture
def run_on(run_on_gpus: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Return `run_on_gpus` with time for runs of several programs."""
    return partial(run_on_gpus, timeout_s=120.0)


@pytest.fixture
def powercap(tmp_path: Path) -> Iterator[FakePowercap]:
    with FakePowercap(tmp_path / "powercap") as fake:
        yield fake
