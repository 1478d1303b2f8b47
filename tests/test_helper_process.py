"""No file that lies about is executed in a helper process of torchwatt."""

import ast
import os
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.fleet import write_fleet
from tests.support.heavy import some_of
from torchwatt.helper_process import helper_command, package_folders, system_program

SOURCES = REPOSITORY / "src" / "torchwatt"
# Whatever a helper imports is one of these, and so is what it only looks for.
NAMES = sorted({*sys.stdlib_module_names, *packages_distributions(), "torchwatt", "sitecustomize", "usercustomize"})
PLANTED = "open({log!r}, 'a').write(__file__ + chr(10))\n"
HELPERS = {
    "sampler": """
def start():
    feed = Sampler(merge_discoveries([discover_rapl(Path(GIVEN)), Discovery((process_source(),))]))
    feed.start()
    assert feed.sampler_pid is not None, feed.stop().events
    time.sleep(0.3)
    assert not [event for event in feed.stop().events if event.code == 'SAMPLER_THREAD']
""",
    "trace worker": """
def start():
    jobs = JoinWorkers()
    jobs.next_trace().write_text('{"traceEvents": []}')
    jobs.hand_over(NO_RANGES, 0, (0, 1))
    jobs.finish()
    assert 'holds no complete event' in jobs.failures[0]  # so says the worker
    jobs.close()
""",
    "ingest worker": """
def start():
    lake = open_lake(Path(tempfile.mkdtemp()) / 'lake')
    found = ingest(lake, [Path(GIVEN)], jobs=2)
    assert found.count('added') == 2, found
""",
    "probe of an object store": """
def start():
    check_reachable('mock:///' + GIVEN)
""",
}
PROGRAM = """
import os, sys, tempfile, time
from pathlib import Path
from torchwatt.audit.fleet import ingest, open_lake
from torchwatt.audit.fleet.lake import check_reachable
from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.load_model import process_source
from torchwatt.sensors.protocol import Discovery, merge_discoveries
from torchwatt.sensors.rapl import discover_rapl
from torchwatt.tracing.device_windows import JoinWorkers
from torchwatt.kineto.host_ownership import NO_RANGES
GIVEN, script_folder = sys.argv[1:]
{start}
start()  # loads what this process itself imports late
sys.path.insert(0, script_folder)
sys.path.insert(0, '')
start()
"""


def plant(folder: Path, log: Path) -> Path:
    """Write a file for each module that anything could import."""
    folder.mkdir()
    for name in NAMES:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(PLANTED.format(log=str(log)))
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return the log, and folders to be the current one, the script's, PYTHONPATH, and the user's home."""
    root = tmp_path_factory.mktemp("planted")
    return root / "log", *(plant(root / name, root / "log") for name in ("cwd", "script", "path", "home"))


@pytest.fixture
def run(planted):
    log, cwd, script, path, home = planted
    log.unlink(missing_ok=True)

    def start(*command: object) -> str:
        env = {**os.environ, "PYTHONPATH": str(path), "PYTHONUSERBASE": str(home), "PYTHONSTARTUP": str(cwd / "os.py")}
        done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return log.read_text() if log.exists() else ""

    start.script = script
    return start


def test_the_trap_works(run):
    assert "json.py" in run(sys.executable, "-E", "-c", "import json")


@pytest.mark.parametrize("helper", some_of(HELPERS, 1))
def test_a_helper_runs_no_file_that_somebody_planted(helper, run, powercap, tmp_path):
    given = powercap.root
    if helper == "ingest worker":
        given = tmp_path / "runs"
        write_fleet(given, range(2, 4))
    assert run(sys.executable, "-I", "-c", PROGRAM.format(start=HELPERS[helper]), given, run.script) == ""


def test_a_helper_finds_packages_where_they_are_installed_and_nowhere_else(tmp_path):
    site = next(entry for entry in sys.path if entry.endswith("site-packages"))
    cluster = str(tmp_path / "software" / "lib" / "site-packages")
    given = ["", ".", str(tmp_path), site, "lib/site-packages", cluster, str(REPOSITORY / "src")]
    assert package_folders(given, REPOSITORY / "src") == [site, cluster]
    target = tmp_path / "target"  # pip install --target
    (target / "torchwatt-0.1.0.dist-info").mkdir(parents=True)
    assert package_folders([""], target) == [str(target)]


def test_a_helper_runs_from_an_archive(tmp_path):
    archive = tmp_path / "app.pyz"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "torchwatt").symlink_to(SOURCES)
    (tree / "__main__.py").write_text(
        "import subprocess\n"
        "from torchwatt.helper_process import helper_command\n"
        "command = helper_command('torchwatt.kineto.join_worker', 'none', 'none', 'here', '0')\n"
        "assert '/app.pyz' in command[-6], command\n"
        "print(subprocess.run(command).returncode)\n"
    )
    with zipfile.ZipFile(archive, "w") as packed:
        for path in [tree / "__main__.py", *(tree / "torchwatt").rglob("*.py")]:
            packed.write(path, path.relative_to(tree))
    done = subprocess.run([sys.executable, archive], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr  # there is no such trace: the worker itself says so
    assert (tmp_path / "here").is_file()


def test_a_program_of_the_system_is_not_taken_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "ssh-keygen").write_text("#!/bin/sh\n")
    (tmp_path / "ssh-keygen").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f":.:{os.pathsep.join(('rel', ''))}")
    with pytest.raises(FileNotFoundError, match="ssh-keygen"):
        system_program("ssh-keygen")
    monkeypatch.setenv("PATH", f".:{tmp_path}")
    assert system_program("ssh-keygen") == str(tmp_path / "ssh-keygen")


STARTERS = {
    "cli/live_row.py",
    "sensors/sampler_process.py",
    "tracing/device_windows.py",
    "audit/fleet/ingestion.py",
    "audit/fleet/lake.py",
    "audit/seal.py",
}


def test_processes_are_started_by_these_two_functions_only():
    """A new place that starts a process is written down here, and takes its command from `helper_process`."""
    words = {"subprocess", "multiprocessing", "Popen", "posix_spawn", "spawnv", "system", "popen", "execv", "fork"}
    found = set()
    for path in SOURCES.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        called = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
                  and isinstance(n.value, ast.Name) and n.value.id == "os"}  # fmt: skip
        if (imported | called) & words:
            found.add(str(path.relative_to(SOURCES)))
    assert found == STARTERS
    for name in found:
        text = (SOURCES / name).read_text(encoding="utf-8")
        assert "helper_command(" in text or "system_program(" in text
        assert "sys.executable" not in text


def test_a_python_without_an_executable_starts_nothing(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(OSError, match="executable"):
        helper_command("torchwatt.sensors.sampler_main")
