"""The command line as a user types it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support import ready
from tests.support.bundles import rich_report
from tests.support.heavy import some_of
from torchwatt.audit import write_bundle

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def torchwatt(*args, cwd=None):
    """In a process of its own, for tests of how a program begins and ends."""
    command = [sys.executable, "-m", "torchwatt", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=170)


def script(tmp_path, text):
    path = tmp_path / "train.py"
    path.write_text(text)
    return path


def test_an_unmodified_script_gets_its_layers_and_keeps_its_output(tmp_path):
    done = ready.torchwatt(
        "run", "--csv", tmp_path / "audit", "--html", tmp_path / "r.html", EXAMPLES / "plain_training.py", "--epochs", 2
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["epoch 0", "epoch 1"]
    for name in ("blocks.*.mlp.0", "criterion", "(optimizer)", "(data)"):
        assert name in done.stderr
    shown = ready.torchwatt("show", tmp_path / "audit", "--all")
    assert shown.returncode == 0, shown.stderr
    assert "blocks.1.attention" in shown.stdout
    page = (tmp_path / "r.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "blocks.0.mlp.0" in page


def test_arguments_exit_codes_and_name_are_the_scripts_own(tmp_path):
    path = script(tmp_path, "import sys; print(__name__, sys.argv[1:], sys.path[0]); sys.exit(7)")
    done = ready.torchwatt("run", "-q", path, "--epochs", "3", "-x")
    assert done.stdout == f"__main__ ['--epochs', '3', '-x'] {tmp_path}\n"
    assert done.returncode == 7
    assert done.stderr == ""


def test_an_exception_of_the_script_passes_and_its_report_is_printed(tmp_path):
    path = script(tmp_path, "import torch\ntorch.nn.Linear(2, 2)(torch.ones(1, 2))\nraise KeyError('mine')")
    done = ready.torchwatt("run", path)
    assert done.returncode == 1
    assert "KeyError: 'mine'" in done.stderr
    assert "aborted" in done.stderr


def test_a_script_finds_what_python_would_give_it(tmp_path):
    path = script(tmp_path, "import sys; print(__file__, sys.argv, sys.modules['__main__'].__file__)")
    plain = subprocess.run([sys.executable, path.name, "--", "-q"], capture_output=True, text=True, cwd=tmp_path)
    done = torchwatt("run", "--quiet", path.name, "--", "-q", cwd=tmp_path)
    assert done.stdout == plain.stdout
    assert done.stderr == ""


def test_what_a_script_pickles_at_exit_is_found(tmp_path):
    text = "import atexit, pickle\nclass A: pass\natexit.register(lambda: print(pickle.loads(pickle.dumps(A()))))"
    done = torchwatt("run", "-q", script(tmp_path, text))
    assert "__main__.A object" in done.stdout, done.stderr


def test_the_report_comes_after_what_a_script_does_at_its_exit(tmp_path):
    """Its joules are the run's, its traceback stands before the report, and so it does if it ends the process."""
    text = "import atexit, sys, time\ndef late():\n    time.sleep(1.2)\n    raise ValueError('at exit')\n"
    done = torchwatt("run", "--csv", tmp_path / "audit", script(tmp_path, text + "atexit.register(late)\n"))
    assert done.returncode == 0
    assert 0 < done.stderr.index("ValueError: at exit") < done.stderr.index("torchwatt · train.py · complete")
    run = (tmp_path / "audit" / "run.csv").read_text().splitlines()
    row = dict(zip(run[0].split(","), run[1].split(","), strict=False))
    assert float(row["duration_s"]) > 1.1
    text = "import atexit, os\natexit.register(lambda: os._exit(5))\n"
    done = torchwatt("run", "--layers", "off", script(tmp_path, text))
    assert done.returncode == 5
    assert done.stderr.startswith("torchwatt · train.py · complete")


FILES = """
import os
files = []
try:
    while True:
        files.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    for file in files:
        os.close(file)
print(len(files))
"""


MOST_FILES = {"20": 9, "256": 12}  # by the limit of the shell


@pytest.mark.parametrize("limit", some_of(MOST_FILES, 1))
def test_a_run_takes_few_of_the_files_that_a_script_may_open(tmp_path, limit):
    most = MOST_FILES[limit]
    path = script(tmp_path, FILES)

    def opened(*command):
        line = f"ulimit -n {limit}; exec " + " ".join(map(str, command))
        return int(subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout)

    plain = opened(sys.executable, path)
    assert plain - most <= opened(sys.executable, "-m", "torchwatt", "run", "--layers", "off", path) < plain


NUMPY = """
import os, pickle, sys
def threads():
    return len(os.listdir("/proc/self/task"))
print("numpy" in sys.modules, os.environ.get("OPENBLAS_NUM_THREADS"))
before, os.environ["OPENBLAS_NUM_THREADS"] = threads(), sys.argv[1]
import numpy.linalg
import numpy as np
print(threads() - before, np.__spec__.origin == np.__file__, type(np.__loader__).__name__)
print(numpy.linalg.norm(np.ones((300, 300)) @ np.ones((300, 300))), pickle.loads(pickle.dumps(np.arange(3))))
"""


@pytest.mark.parametrize("wanted", some_of(["1", "2", "many"], 1))
def test_a_script_imports_numpy_itself_with_threads_of_its_choice(tmp_path, wanted):
    path = script(tmp_path, NUMPY)
    env = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    outputs = [
        subprocess.run([sys.executable, *how, path, wanted], capture_output=True, text=True, env=env, check=True).stdout
        for how in ([], ["-m", "torchwatt", "run", "-q", "--layers", "off"])
    ]
    assert outputs[0] == outputs[1]
    assert outputs[1].startswith("False None\n")


def test_threads_of_a_script_belong_to_its_run(tmp_path):
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(1.2,)).start()"
    ready.torchwatt("run", "-q", "--csv", tmp_path / "audit", script(tmp_path, text))
    run = (tmp_path / "audit" / "run.csv").read_text().splitlines()
    row = dict(zip(run[0].split(","), run[1].split(","), strict=False))
    assert float(row["duration_s"]) > 1.1


@pytest.mark.parametrize("kind", some_of(["ThreadPoolExecutor", "ProcessPoolExecutor"], 1))
def test_a_pool_that_the_script_never_shuts_down_ends_with_it(tmp_path, kind):
    text = f"""
from concurrent.futures import {kind}
import time

pool = {kind}(2)
print(pool.submit(abs, -7).result())
late = pool.submit(time.sleep, 1.2)  # what was handed in is finished, as in plain Python
"""
    torchwatt("run", "-q", "--csv", tmp_path / "audit", script(tmp_path, text))
    run = (tmp_path / "audit" / "run.csv").read_text().splitlines()
    row = dict(zip(run[0].split(","), run[1].split(","), strict=False))
    assert row["status"] == "complete"
    assert 1.1 < float(row["duration_s"]) < 30


def test_files_are_written_where_they_were_asked_for_even_if_the_script_moves(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = script(tmp_path, "import os; os.chdir('elsewhere')")
    ready.torchwatt("run", "-q", "--csv", "audit", path, cwd=tmp_path)
    assert (tmp_path / "audit" / "run.csv").is_file()


def test_an_error_of_ours_that_the_script_raises_is_the_scripts(tmp_path):
    path = script(tmp_path, "import torchwatt as tw\nwith tw.profile(region='Atlantis'): pass")
    done = ready.torchwatt("run", "-q", path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Atlantis" in done.stderr


def test_folders_and_standard_input_run_as_in_python(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text("import sys; print('app', __name__, sys.argv[1:])")
    assert torchwatt("run", "-q", tmp_path / "app", "x").stdout == "app __main__ ['x']\n"
    command = [sys.executable, "-m", "torchwatt", "run", "-q", "-", "y"]
    done = subprocess.run(command, input="import sys; print(sys.argv)", capture_output=True, text=True)
    assert done.stdout == "['-', 'y']\n"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    write_bundle(rich_report(), tmp_path / "audit")
    command = f"{sys.executable} -m torchwatt show {tmp_path / 'audit'} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)  # noqa: S602
    assert done.stderr == ""


def test_a_module_runs_with_m(tmp_path):
    (tmp_path / "tool.py").write_text("import sys; print('tool', sys.argv[1:])")
    done = ready.torchwatt("run", "-q", "-m", "tool", "a", cwd=tmp_path)
    assert done.stdout == "tool ['a']\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "no_such.py"), "no such script"),
        (("show", "no_such_folder"), "no_such_folder"),
        (("run", "--region", "Atlantis", __file__), "Give a country"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(args, words):
    done = ready.torchwatt(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ("python", "train.py", "-x"),
            "python is the Python interpreter: torchwatt runs your script with the Python that",
        ),
        ((sys.executable, "-m", "tool"), "torchwatt run -m tool"),
        (("python3.11",), "torchwatt run train.py"),
        (("bash", "train.sh"), "bash is a command, and torchwatt runs a Python script or, with -m, a module"),
        (("-m", "no_such_module_at_all"), "no module named no_such_module_at_all"),
    ],
)
def test_what_is_no_script_is_refused_with_what_to_write(args, words):
    done = ready.torchwatt("run", *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_option_of_ours_after_the_script_is_the_scripts_and_mentioned_where_it_seems_meant_for_us(tmp_path):
    path = script(tmp_path, "import sys; print(sys.argv[1:])")
    done = torchwatt("run", "--layers", "off", path, "--region", "FRA", "--csv=audit", "--epochs", "3", cwd=tmp_path)
    assert done.stdout == "['--region', 'FRA', '--csv=audit', '--epochs', '3']\n"
    assert (
        f"--region after {path} is passed to the script; for torchwatt, write torchwatt run --region ... {path}"
        in done.stderr
    )
    assert "--csv after" in done.stderr
    assert "--epochs after" not in done.stderr
    path.write_text("import argparse; p = argparse.ArgumentParser(); p.add_argument('--region'); p.parse_args()")
    assert "after" not in torchwatt("run", "--layers", "off", path, "--region", "FRA").stderr
    path.write_text("pass")
    assert "after" not in torchwatt("run", "--layers", "off", path, "--", "--region", "FRA").stderr


def test_a_run_names_its_files_and_the_folders_that_were_made(tmp_path):
    path = script(tmp_path, "import sys; sys.stderr = open('train.log', 'w'); sys.stderr.close()")
    for name in ("audit", "audit-2"):
        done = torchwatt(
            "run", "--layers", "off", "--csv", "out/audit", "--html", "out/r.html", path, cwd=tmp_path
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"torchwatt: written: {tmp_path / 'out' / name}\n" in done.stderr
        assert f"torchwatt: written: {tmp_path / 'out' / 'r.html'}\n" in done.stderr
        assert (f"created the folder {tmp_path / 'out'} for csv" in done.stderr) == (name == "audit")
        assert ("audit is not empty: this run is in" in done.stderr) == (name == "audit-2")
    torchwatt("run", "-q", "--layers", "off", "--csv", "out/audit", "--overwrite", path, cwd=tmp_path)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["audit", "audit-2", "r.html"]


def test_doctor_lets_no_escape_sequence_of_a_drivers_text_reach_the_terminal(monkeypatch, capsys):
    from torchwatt.cli import doctor
    from torchwatt.core.meter import Unavailable

    told = SimpleNamespace(meters=(), unavailable=(Unavailable("gpu:0", "no \x1b[2J way"),), events=())
    monkeypatch.setattr(doctor, "discover", lambda: told)
    doctor.print_discovery()
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"no \x1b[2J way" in out


def test_doctor_as_json_holds_what_a_bug_report_needs(tmp_path):
    done = ready.torchwatt("doctor", "--json", env={"TORCHWATT_POWERCAP_ROOT": str(tmp_path / "none")})
    found = json.loads(done.stdout)
    assert found["packages"]["numpy"] == np.__version__
    assert {meter["domain"] for meter in found["meters"]} >= {"ram"}
    assert all(set(item) == {"domain", "reason", "fix"} for item in found["unavailable"])
    assert any("powercap" in item["reason"] or "none" in item["reason"] for item in found["unavailable"])


def test_doctor_says_what_is_metered_what_is_not_and_how_to_fix_it(tmp_path):
    done = ready.torchwatt("doctor", env={"TORCHWATT_POWERCAP_ROOT": str(tmp_path / "none")})
    assert done.returncode in {0, 1}
    assert "Metered here:" in done.stdout
    assert "fix:" in done.stdout


def test_the_console_script_is_the_same_program():
    path = Path(sys.executable).parent / "torchwatt"
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torchwatt ")


@pytest.mark.slow
def test_the_demo_learns_and_shows_forward_and_backward_of_every_layer(tmp_path):
    done = ready.torchwatt("demo", "--region", "FRA", "--csv", tmp_path / "audit", "--html", tmp_path / "report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for name in ("conv1", "conv2", "conv3", "fc1", "fc2", "relu1", "pool", "flatten"):
        line = next(line for line in lines if re.match(rf"{name} .*J", line))  # not the answer, where it breaks there
        assert len(re.findall(r"[\d.]+ [mk]?J", line)) >= 4  # its joules, their interval, forward and backward
    accuracy = float(
        lines[next(i for i, x in enumerate(lines) if x.startswith("Test accuracy"))].split()[-1].rstrip("%")
    )
    assert accuracy > 95
    assert (tmp_path / "report.html").stat().st_size > 5_000


def test_the_words_before_the_script_are_ours_and_those_after_it_the_scripts():
    from torchwatt.cli.command_parser import SWITCHES, _split_arguments, build_parser

    run = next(a for a in build_parser()._actions if a.dest == "command").choices["run"]
    assert {name for a in run._actions if a.nargs == 0 for name in a.option_strings} == SWITCHES
    assert _split_arguments(["run", "--region", "FRA", "-q", "a.py", "--", "-q"]) == (
        ["run", "--region", "FRA", "-q", "a.py"],
        ["--", "-q"],
    )
    assert _split_arguments(["run", "--csv=d", "--", "-odd.py", "x"]) == (["run", "--csv=d", "--", "-odd.py"], ["x"])
    assert _split_arguments(["show", "d"]) == (["show", "d"], [])


def test_verify_says_consistent_or_where_it_is_not_and_exits_with_it(tmp_path):
    bundle = write_bundle(rich_report(), tmp_path / "audit")
    good = ready.torchwatt("verify", bundle)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.endswith(f"{bundle}: consistent; unsigned: anyone could have made it\n")
    unmet = ready.torchwatt("verify", bundle, "--require-signature", "SHA256:" + "A" * 43)
    assert unmet.returncode == 1
    assert "contents: consistent" in unmet.stdout
    assert "SIGNATURE statement.json.sig: is missing; a signature was asked for" in unmet.stdout
    (bundle / "layer.csv").write_bytes((bundle / "layer.csv").read_bytes().replace(b"forward", b"forwards", 1))
    bad = ready.torchwatt("verify", bundle)
    assert bad.returncode == 1
    assert (
        "CELL layer.csv row 6 column phase: is no word of this column; expected one of forward, backward" in bad.stdout
    )
    none = ready.torchwatt("verify", tmp_path)
    assert none.returncode == 2
    assert "no bundle" in none.stderr


def test_a_projects_chain_and_key_are_taken_from_the_environment(tmp_path, monkeypatch):
    path = script(tmp_path, "import torch\ntorch.nn.Linear(2, 2)(torch.ones(1, 2))")
    chain = tmp_path / "runs" / "chain.jsonl"
    monkeypatch.setenv("TORCHWATT_CHAIN", str(chain))
    for name in ("a", "b"):
        done = ready.torchwatt("run", "-q", "--csv", tmp_path / "runs" / name, path)
        assert done.returncode == 0, done.stderr
    good = ready.torchwatt("verify", tmp_path / "runs" / "b", "--chain", chain, "--runs", tmp_path / "runs")
    assert good.returncode == 0, good.stdout
    (tmp_path / "runs" / "a").rename(tmp_path / "hidden")
    bad = ready.torchwatt("verify", tmp_path / "runs" / "b", "--chain", chain, "--runs", tmp_path / "runs")
    assert bad.returncode == 1
    assert "CHAIN chain.jsonl row 1 column bundle" in bad.stdout
