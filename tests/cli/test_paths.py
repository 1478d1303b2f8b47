"""Whatever a path argument names, a command ends with one sentence, and never with a traceback."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.support.bundles import rich_report
from tests.support.fleet import write_fleet
from tests.support.ranks import record
from tests.support.ready import torchwatt
from torchwatt.audit import write_bundle
from torchwatt.cli.command_parser import run_command

FACTORS = "kind,value,unit,source_name\ngrid_gwp,50,g{CO2e}/kW.h,mine\n"
TRACE = '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 1, "dur": 1}]}'
# {name} is the argument; what else is needed is good. A command that succeeds is right, too: a new file may be there.
COMMANDS = {
    "show": "show {}",
    "show, store": "show x --store {}",
    "show, html": "show {bundle} --html {}",
    "verify": "verify {}",
    "verify, chain": "verify {bundle} --chain {}",
    "verify, runs": "verify {bundle} --chain {chain} --runs {}",
    "verify, signers": "verify {bundle} --allowed-signers {}",
    "reprice": "reprice {} --intensity 50",
    "reprice, to": "reprice {bundle} --intensity 50 --scenario x --to {}",
    "reprice, chain": "reprice {bundle} --intensity 50 --scenario y --chain {}",
    "reprice, factors": "reprice {bundle} --factors {}",
    "reprice, scenario": "reprice {bundle} --intensity 50 --scenario {}",
    "export": "export {} --to codecarbon",
    "export, out": "export {bundle} --to codecarbon --out {}",
    "export, perfetto": "export {bundle} --to perfetto --out {}",
    "export, xlsx": "export {bundle} --to xlsx --out {}",
    "export, parquet": "export {bundle} --to parquet --out {}",
    "runs": "runs --store {}",
    "runs, rebuild": "runs --rebuild --store {}",
    "recover": "recover {}",
    "recover, store": "recover x --store {}",
    "merge": "merge {}",
    "merge, csv": "merge {job} -q --csv {}",
    "merge, html": "merge {job} -q --html {}",
    "merge, factors": "merge {job} -q --factors {}",
    "attribute, trace": "attribute --trace {}",
    "attribute, power": "attribute --trace {trace} --power {}",
    "attribute, idle": "attribute --trace {trace} --power {power} --idle {}",
    "attribute, capture": "attribute --trace {trace} --capture {}",
    "attribute, sidecar": "attribute --trace {trace} --sidecar {}",
    "attribute, out": "attribute --trace {trace} --power {power} --out {}",
    "ingest, lake": "fleet ingest {} {runs}",
    "ingest, runs": "fleet ingest {lake} {}",
    "rollup": "fleet rollup {}",
    "rollup, out": "fleet rollup {lake} --out {}.csv",
    "fleet verify": "fleet verify {}",
    "fleet sql": "fleet sql {}",
    "run": "run --no-journal -q {}",
    "run, csv": "run --no-journal -q --layers off --csv {} {script}",
    "run, html": "run --no-journal -q --layers off --html {} {script}",
    "run, journal": "run -q --layers off --journal {} {script}",
    "run, store": "run --no-journal -q --layers off --keep --store {} {script}",
    "run, factors": "run --no-journal -q --layers off --factors {} {script}",
    "run, textfile": "run --no-journal -q --layers off --metrics textfile:{}/x.prom {script}",
    "watch, csv": "watch --url http://127.0.0.1:9/metrics --csv {}",
    "watch, factors": "watch --url http://127.0.0.1:9/metrics --factors {}",
    "watch, html": "watch --url http://127.0.0.1:9/metrics --html {}",
    "demo, csv": "demo --factors {}",
}


def folder(path):
    path.mkdir()
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def listening(path):
    here = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)
    return path


def huge(path):
    path.touch()
    os.truncate(path, 20 * 10**9)
    return path


def binary(path):
    path.write_bytes(bytes(range(256)) * 64)
    return path


def unreadable(path):
    path.write_text("pass\n")
    path.chmod(0)
    return path


def loop(path):
    path.symlink_to(path)
    return path


WAYS = {
    "folder": folder,
    "pipe": pipe,
    "socket": listening,
    "20 GB": huge,
    "binary": binary,
    "unreadable": unreadable,
    "loop of links": loop,
    "missing": lambda path: path,
    "missing folder": lambda path: path / "a" / "b",
    "below a file": lambda path: binary(path) / "a",
    "device": lambda path: Path("/dev/null"),
    "endless device": lambda path: Path("/dev/zero"),
    "300 characters": lambda path: path.with_name("x" * 300),
    "no path at all": lambda path: Path("y" * 5000),
    "not UTF-8": lambda path: path.with_name("\udcff"),
    "control characters": lambda path: path.with_name("\x1b[31mred"),
}
# Python itself reads a script from a pipe, as a shell's `<(...)` gives it, and says what is wrong with a binary one.
AS_PYTHON = {("run", "pipe"), ("run", "binary")}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return good inputs by name."""
    from torchwatt.audit import Seal
    from torchwatt.distributed import job_folder

    at = tmp_path_factory.mktemp("good")
    names = {name: at / name for name in ("chain", "job", "runs", "lake", "trace", "power", "script")}
    names["bundle"] = write_bundle(rich_report(), at / "bundle", seal=Seal(names["chain"]))
    one = record(0, 1)
    job_folder.begin_rank(names["job"], one.facts)
    job_folder.end_rank(names["job"], one.facts, one.report)
    write_fleet(names["runs"], range(2, 3))
    assert run_command(["fleet", "ingest", str(names["lake"]), str(names["runs"])]) == 0
    names["trace"].write_text(TRACE)
    names["power"].write_text("timestamp,power_w\n2026-01-01T00:00:00Z,100\n2026-01-01T00:00:01Z,100\n")
    names["script"].write_text("pass\n")
    return names


# Each is another branch of the system's calls; the others are tried with `make test-all`, and so are most of the cases
# that need a process of their own.
USUAL = {"folder", "pipe", "20 GB", "binary", "missing", "endless device", "300 characters", "not UTF-8"}
ENDS_ITS_PROCESS = ("run ", "demo")  # its end stops pools of threads, as the interpreter does
CASES = [
    pytest.param(command, way, marks=pytest.mark.heavy)
    if way not in ({"missing"} if COMMANDS[command].startswith(ENDS_ITS_PROCESS) else USUAL)
    else (command, way)
    for command in COMMANDS
    for way in WAYS
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("command", "way"), CASES)
def test_a_path_ends_in_one_sentence(command, way, good, tmp_path, capsys, monkeypatch):
    if (command, way) in AS_PYTHON:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHWATT_STORE", str(tmp_path / "own"))
    (tmp_path / "in").mkdir()
    given = str(WAYS[way](tmp_path / "in" / "given"))
    words = [word.replace("{}", given) if "{}" in word else word.format(**good) for word in COMMANDS[command].split()]
    here = {name: path for name, path in good.items() if f"{{{name}}}" in COMMANDS[command]}
    for name, path in here.items():  # a copy: what one case writes must not be there for the next
        copy = tmp_path / name
        shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
        words = [word.replace(str(path), str(copy)) for word in words]
    if COMMANDS[command].startswith(ENDS_ITS_PROCESS):
        done = torchwatt(*words, cwd=tmp_path)
        code, out, said = done.returncode, done.stdout, done.stderr
    else:
        code = run_command(words)
        out, said = capsys.readouterr()
    assert code in {0, 1, 2}
    assert "Traceback" not in said + out
    assert "Error(" not in said
    if code == 2:
        last = said.splitlines()[-1]
        assert last.startswith("torchwatt: "), said
        assert "\x1b" not in said
        assert len(last) > len("torchwatt: ") + 10


def test_every_command_with_a_path_is_in_the_table():
    from torchwatt.cli.command_parser import build_parser

    known = " ".join(COMMANDS.values())
    commands = next(action for action in build_parser()._actions if action.dest == "command").choices
    for name, parser in commands.items():
        if name not in {"doctor", "calibrate"}:
            assert any(line.startswith(name) for line in COMMANDS.values()), name
        for action in parser._actions:
            if action.metavar in {"FILE", "DIR", "PATH", "NEWDIR", "CSV"} and action.option_strings:
                option = action.option_strings[-1]
                assert f"{name} " in known
                assert any(
                    line.startswith(name) and f"{option} {{}}" in line for line in COMMANDS.values()
                ) or name in {
                    "demo",  # as `run`
                    "recover",  # as `merge`
                }, (name, option)


@pytest.mark.parametrize("scenario", ["x" * 300, "x" * 101, "a/b", "..", "\x1b[31m", "", "-"])
def test_a_scenario_that_is_no_name_is_refused_in_one_line(scenario, good, capsys):
    code = run_command(
        ["reprice", str(good["bundle"]), "--intensity", "50", f"--scenario={scenario}", "--to", "/nowhere/x"]
    )
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("torchwatt: ")
    assert len(said.splitlines()) == 1
    assert len(said) < 400
