"""Names that others chose, on the terminal of whoever runs a command: visible characters and nothing else."""

import subprocess
import sys
import warnings

import duckdb
import pytest

from tests.support.reports import named_report
from torchwatt.audit import write_bundle
from torchwatt.audit.fleet import ingest, open_lake, views_script
from torchwatt.audit.store import Store
from torchwatt.cli.command_parser import run_command

HOSTILE = "a\x1b[31m\x1b]0;owned\x07\u202eb\x9b2J'c"


def assert_visible(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), text


@pytest.fixture
def hostile_lake(tmp_path):
    """Return a lake whose runs, project and folder have a hostile name."""
    write_bundle(named_report(HOSTILE, "fc"), tmp_path / "runs" / "one")
    lake = open_lake(tmp_path / f"lake{HOSTILE}")
    assert ingest(lake, [tmp_path / "runs"], project=HOSTILE).count("added") == 1
    return lake


@pytest.mark.parametrize(
    "command", ["sql", "verify", "rollup", *(f"rollup --by {by}" for by in ("project", "model", "layer", "device"))]
)
def test_a_lake_is_text_on_the_terminal(command, hostile_lake, capsys):
    words = command.split()
    assert run_command(["fleet", words[0], hostile_lake.name, *words[1:]]) == 0
    assert_visible(capsys.readouterr().out)


def test_the_sql_of_a_lake_means_what_it_meant(hostile_lake):
    text = views_script(hostile_lake)
    assert_visible(text)
    with duckdb.connect() as connection:
        connection.execute(text)
        assert connection.sql("SELECT DISTINCT project FROM lake_run").fetchall() == [(HOSTILE,)]
        assert connection.sql("SELECT count(*) FROM lake_run").fetchall() == [(1,)]


@pytest.mark.parametrize(
    "argv",
    [
        [HOSTILE],
        ["verify", f"--{HOSTILE}"],
        ["show", "nothing", f"--{HOSTILE}"],
        ["fleet", HOSTILE, "lake"],
        ["run", f"--layers={HOSTILE}", "x.py"],
        ["calibrate", "--seconds", HOSTILE],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_text_on_the_terminal(argv, capsys):
    """Arguments may be names of files that a shell put in place of a `*`."""
    with pytest.raises(SystemExit):
        run_command(argv)
    assert_visible(capsys.readouterr().err)


def test_a_device_that_is_not_there_is_text_on_the_terminal(capsys):
    assert run_command(["calibrate", "--device", HOSTILE, "--seconds", "1"]) == 2
    told = capsys.readouterr()
    assert_visible(told.out + told.err)


def test_a_script_and_its_bundle_are_text_on_the_terminal(tmp_path):
    (tmp_path / f"{HOSTILE}.py").write_text("print('hello')\n")
    command = [sys.executable, "-m", "torchwatt", "run", "--layers", "off", "--csv", f"out{HOSTILE}", f"{HOSTILE}.py"]
    done = subprocess.run([*command, "--csv"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == "hello\n"
    assert "written: " in done.stderr
    assert_visible(done.stderr)


def test_a_warning_of_the_store_is_text_on_the_terminal(tmp_path):
    store = Store(tmp_path)
    kept = store.keep(named_report("fc"), "project")
    kept.rename(kept.with_name(f"zz{HOSTILE}"))
    (kept.with_name(f"zz{HOSTILE}") / "run.csv").write_text("x")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        store.rebuild()
    assert "zz" in "".join(str(one.message) for one in said)
    assert_visible("\n".join(str(one.message) for one in said))
