"""The magic in a real IPython shell, in this process: where its options end, and what it refuses."""

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import torchwatt as tw
from torchwatt.notebook.magic_options import MAGIC_OPTIONS, MagicArguments, parse_magic

ONLY_IN_PYTHON = (
    "model", "overhead_budget", "baseline_s", "powercap_root", "feed", "dither_s", "replays", "work",
    "misplaced", "unknown",  # mistakes
    "journal", "job", "job_wait_s",  # for scripts: `torchwatt run`, torchrun
)  # fmt: skip


@pytest.fixture
def shell():
    ip = InteractiveShell.instance()
    ip.run_line_magic("load_ext", "torchwatt")
    yield ip
    ip.run_line_magic("unload_ext", "torchwatt")
    InteractiveShell.clear_instance()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s == s.lstrip() and s[0] != "-"))
def test_a_statement_after_the_options_stays_as_it_was_typed(statement):
    asked, rest = parse_magic(f"-q --region=FRA -o run {statement}")
    assert rest == statement
    assert asked == MagicArguments("run", quiet=True, profile={"region": "FRA"})
    assert parse_magic(f"-- -{statement}")[1] == f"-{statement}"


@given(st.text())
def test_any_line_is_parsed_or_refused_with_one_line(line):
    refusal = ""
    try:
        parse_magic(line)
    except UsageError as error:
        refusal = str(error)
    assert "\n" not in refusal


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("", MagicArguments()),
        ("-o run", MagicArguments("run")),
        ("-orun --quiet", MagicArguments("run", quiet=True)),
        ('--csv "my run"', MagicArguments(profile={"csv": "my run"})),
        (r"--csv C:\runs\1 --pue=1.2", MagicArguments(profile={"csv": r"C:\runs\1", "pue": 1.2})),
        ("--intensity 56 --layers off", MagicArguments(profile={"intensity_g_per_kwh": 56.0, "layers": "off"})),
        ("--name 'a b'", MagicArguments(profile={"name": "a b"})),
        ("--keep --project toy", MagicArguments(profile={"keep": True, "project": "toy"})),
        (
            "--market 12 --facility scaleway/fr-par-2",
            MagicArguments(profile={"market": 12.0, "facility": "scaleway/fr-par-2"}),
        ),
        ("--factors=mine.csv", MagicArguments(profile={"factors": "mine.csv"})),
    ],
)
def test_options(line, asked):
    assert parse_magic(line) == (asked, "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--bogus", "no option --bogus"),
        ("-q=1", "takes no value"),
        ("-o run -o run", "given twice"),
        ("--region --pue 1", "--region needs a value"),
        ("--layers perhaps", "on or off"),
        ("-o class", "a Python name"),
        ("--keep=yes", "--keep takes no value"),
        ("--market much", "give a number"),
    ],
)
def test_what_is_wrong_is_named(line, said):
    with pytest.raises(UsageError, match=said):
        parse_magic(line)


def test_the_last_expression_is_the_cells_value_and_the_run_is_stored(shell):
    result = shell.run_cell("%%energy -q -o run\nx = 40\nx + 2")
    assert result.result == 42
    assert shell.user_ns["run"].status == "complete"


def test_exceptions_pass_unchanged_and_the_run_is_still_stored(shell):
    shell.user_ns["error"] = error = LookupError("the very one")
    result = shell.run_cell("%%energy -q -o broken\nraise error")
    assert result.error_in_exec is error
    assert error.__cause__ is error.__context__ is None
    assert shell.user_ns["broken"].status == "aborted"


def test_a_fault_in_showing_the_report_does_not_take_the_place_of_the_users_error(shell, monkeypatch):
    def fail(_run):
        raise RuntimeError("no screen")

    monkeypatch.setattr("torchwatt.notebook.notebook_view.display", fail)
    with pytest.warns(RuntimeWarning, match="no screen"):
        result = shell.run_cell("%%energy -o broken\n1 / 0")
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert shell.user_ns["broken"].status == "aborted"


def test_every_choice_of_a_run_has_a_flag_and_every_flag_its_line_of_help(shell):
    """What is left to `profile()` needs an object of Python, or is for experiments with the profiler itself."""
    of_profile = set(inspect.signature(tw.profile.__init__).parameters) - {"self", "live", *ONLY_IN_PYTHON}
    assert {flag.argument for flag in MAGIC_OPTIONS.values()} - {""} == of_profile
    told = shell.find_cell_magic("energy").__doc__
    assert [name for name in MAGIC_OPTIONS if not re.search(rf"^ +(-\w, )?{name}\b", told, re.MULTILINE)] == []


def test_a_run_is_kept_in_the_store_under_its_project(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHWATT_STORE", str(tmp_path))
    shell.run_cell("%energy -q -o run --keep --project toy 1 + 1")
    assert [path.parent.name for path in tmp_path.rglob("run.csv")] == [shell.user_ns["run"].report.run_id]
    assert (tmp_path / "toy" / shell.user_ns["run"].report.run_id / "run.csv").is_file()
    with pytest.raises(UsageError, match="--project NAME names the project of a saved run: give --keep"):
        shell.run_line_magic("energy", "-q --project toy 1 + 1")


def test_a_statement_that_begins_with_a_minus_follows_two(shell):
    assert shell.run_cell("%energy -q -- -3 + 1").result == -2


def test_before_anything_was_measured_the_bare_magic_says_so(shell):
    with pytest.raises(UsageError, match="nothing was measured yet"):
        shell.run_line_magic("energy", "")
    result = shell.run_cell("%energy -q 1")
    assert result.result == 1
    assert shell.run_line_magic("energy", "").status == "complete"
