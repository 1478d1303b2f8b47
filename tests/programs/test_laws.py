"""What holds for every program: its report says what the program's own clock and counters say.

Each program runs two or three times; three only where two do not settle on which side of the bound their median is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.programs.catalog import PROGRAMS
from tests.programs.measure import Result, bound, in_the_middle, loaded

pytestmark = pytest.mark.alone  # shares of time

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
GROUP_TIMEOUT_S = 170


def groups() -> dict[tuple[str, bool], list[str]]:
    """Return the programs of one file as a group that shares a process, the heavy ones apart."""
    found: dict[tuple[str, bool], list[str]] = {}
    for name, each in PROGRAMS.items():
        found.setdefault((each.make.__module__, each.heavy), []).append(name)
    return found


GROUPS = groups()


def marked(values, heavy):
    return [pytest.param(value, marks=[pytest.mark.heavy] if heavy(value) else []) for value in values]


every_program = pytest.mark.parametrize("name", marked(PROGRAMS, lambda name: PROGRAMS[name].heavy))
every_group = pytest.mark.parametrize("group", marked(GROUPS, lambda group: group[1]), ids=lambda group: group[0])


@cache
def results_of_group(group: tuple[str, bool]) -> tuple[dict[str, list[Result]], str]:
    """Return the runs of each program, and what the process wrote to stderr."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "results.jsonl"
        command = [sys.executable, "-m", "tests.programs.measure", str(file), *GROUPS[group]]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=GROUP_TIMEOUT_S
        )
        lines = file.read_text().splitlines() if file.exists() else []
    found: dict[str, list[Result]] = {}
    for line in lines:
        result = loaded(json.loads(line))
        found.setdefault(result.program, []).append(result)
    return found, done.stderr


def runs(name: str) -> list[Result]:
    program = PROGRAMS[name]
    found, stderr = results_of_group((program.make.__module__, program.heavy))
    assert name in found, stderr
    return found[name]


@every_program
def test_every_step_is_counted_once(name):
    for run in runs(name):
        assert run.steps["all"].reported == run.steps["all"].truth


@every_program
def test_steps_are_of_the_stage_that_they_were(name):
    for run in runs(name):
        assert {stage: pair.reported for stage, pair in run.steps.items()} == {
            stage: pair.truth for stage, pair in run.steps.items()
        }


@every_program
def test_phases_have_the_shares_of_the_clock(name):
    run = in_the_middle(runs(name))
    assert not beyond(run, run.phases)


@every_program
def test_timed_modules_have_the_shares_of_the_clock(name):
    run = in_the_middle(runs(name))
    assert not beyond(run, run.groups)


def beyond(run: Result, pairs) -> dict[str, str]:
    return {
        name: f"{pair.truth:.1f} % by the clock, {pair.reported:.1f} % reported"
        for name, pair in pairs.items()
        if abs(pair.reported - pair.truth) > bound(run)
    }


@every_program
def test_calls_are_exact_or_empty(name):
    for run in runs(name):
        wrong = {call: pair for call, pair in run.calls.items() if pair.reported not in {None, pair.truth}}
        assert not wrong


@every_program
def test_what_did_not_run_has_no_row(name):
    for run in runs(name):
        assert not [call for call, pair in run.calls.items() if pair.truth == 0]


@every_program
def test_names_are_those_of_the_state_dict(name):
    for run in runs(name):
        assert not run.strange_names
        assert not run.missing_names


@every_program
def test_parents_are_the_sums_of_their_children(name):
    for run in runs(name):
        assert not run.unequal_parents


STATUS = 3


@every_group
def test_output_and_exit_status_are_those_of_plain_python(group):
    script = ["tests/programs/plain.py", *GROUPS[group], "--length", "0.05", "--status", str(STATUS)]
    plain, profiled = (
        subprocess.run(
            [*command, *script],
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=GROUP_TIMEOUT_S,
        )
        for command in ([sys.executable], [sys.executable, "-m", "torchwatt", "run", "--quiet", "--no-journal"])
    )
    assert plain.returncode == STATUS, plain.stderr
    assert (profiled.returncode, profiled.stdout) == (STATUS, plain.stdout), profiled.stderr
