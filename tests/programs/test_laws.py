"""What holds for every program: its report says what the program's own clock and counters say.

Each program runs two or three times; three only where two do not settle on which side of the bound their median is.
Runs of half a second are decided by tracing's head start, and by whatever else a machine does: programs whose shares
are beyond the bound run once again, several times as long and one process at a time, and once more if need be. A
law of shares is broken where every round breaks it. Laws that are known to be broken are expected failures: `KNOWN`.

`make test` runs a program of some kinds (files) each, which the commit chooses; the others are heavy.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.programs.catalog import PROGRAMS
from tests.programs.measure import REPEATS, Pair, Result, bound, in_the_middle, loaded, write_results
from tests.support import ready
from tests.support.chosen import chosen

AT_ONCE = 2  # processes, of one thread each
TIMEOUT_S = 900  # of a process, on a machine that is busy with other things
pytestmark = [pytest.mark.alone, pytest.mark.timeout(3 * TIMEOUT_S)]  # shares of time; the first test measures


def is_installed(name: str) -> bool:
    return not PROGRAMS[name].needs or find_spec(PROGRAMS[name].needs) is not None


KINDS = {each.make.__module__ for each in PROGRAMS.values() if not each.heavy}
SOME_KINDS, EACH_KIND = 2, 1  # files in `make test`, and programs of each
USUAL = set().union(*(
    chosen([name for name, each in PROGRAMS.items() if each.make.__module__ == kind and not each.heavy], EACH_KIND)
    for kind in chosen(KINDS, SOME_KINDS)
))  # fmt: skip
LONGER = 4.0  # times
MORE_ROUNDS = 2
VMAP = "where vmap unwraps gradients Dynamo has rules for all functions: none can be wrapped, and it is no backward"
WAITS = "spans are wall time: on a busy machine threads mostly wait, for the interpreter and for cores, and use nothing"
UNCOUNTED = "on a busy machine counting is beyond the budget: joules are the enclosing module's (PATHS_UNKNOWN)"
KNOWN = {
    ("groups", "layer_drop"): UNCOUNTED,
    ("phases", "per_sample_gradients"): VMAP,
    ("phases", "threads"): WAITS,
}


def known(law: str) -> pytest.MarkDecorator:
    """Return all programs as parameters; those that are known to break a law are expected to fail."""
    return pytest.mark.parametrize("name", [
        pytest.param(name, marks=[
            *marks(name), *([pytest.mark.xfail(reason=KNOWN[law, name], strict=False)] if (law, name) in KNOWN else []),
        ])
        for name in PROGRAMS
    ])  # fmt: skip


def marks(name: str) -> list[pytest.MarkDecorator]:
    absent = pytest.mark.skipif(not is_installed(name), reason=f"needs {PROGRAMS[name].needs}: requirements-all.txt")
    return [absent, *([] if name in USUAL else [pytest.mark.heavy])]


every_program = pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in PROGRAMS])


@dataclass(frozen=True)
class Runs:
    """The runs of each program, the middle run of each round by program, and what was written to stderr."""

    usual: dict[str, list[Result]]
    rounds: dict[str, list[Result]]
    stderr: str


@pytest.fixture(scope="session")
def results(request):
    """Run all programs that any selected test asks for, those of one file in one process."""
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    groups: dict[tuple[bool, str], list[str]] = {}
    for name in filter(is_installed, PROGRAMS):
        if name in asked:
            groups.setdefault((PROGRAMS[name].heavy, PROGRAMS[name].make.__module__), []).append(name)
    usual, stderr = measured(sorted(groups.values(), key=len, reverse=True), at_once=AT_ONCE)
    rounds = {name: [in_the_middle(runs)] for name, runs in usual.items()}
    for _ in range(MORE_ROUNDS):
        doubtful = [[name] for name, middles in rounds.items() if is_doubtful(name, middles)]
        longer, more = measured(doubtful, at_once=1, length=LONGER, repeats=1)
        for name, runs in longer.items():
            rounds[name].append(in_the_middle(runs))
        stderr += more
    return Runs(usual, rounds, stderr)


@pytest.fixture
def runs(results, name):
    assert name in results.usual, results.stderr
    return results.usual[name]


@pytest.fixture
def rounds(results, runs, name):
    """Return the middle run of each round of a program."""
    return results.rounds[name]


def is_doubtful(name: str, middles: list[Result]) -> bool:
    """Say whether a law of shares is broken in every round so far, and not known to be."""
    laws = {"phases": phases_of, "groups": groups_of}
    return any(broken(middles, pairs_of) for law, pairs_of in laws.items() if (law, name) not in KNOWN)


def phases_of(run: Result) -> dict[str, Pair]:
    return run.phases


def groups_of(run: Result) -> dict[str, Pair]:
    return run.groups


def broken(middles: list[Result], pairs_of: Callable[[Result], dict[str, Pair]]) -> list[dict[str, str]]:
    """Return what is beyond the bound in each round, if something is in every one of them."""
    found = [beyond(run, pairs_of(run)) for run in middles]
    return found if all(found) else []


def measured(
    groups: list[list[str]], *, at_once: int, length: float = 1.0, repeats: int = REPEATS
) -> tuple[dict[str, list[Result]], str]:
    """Return the runs of all programs, one process a group, and what the processes wrote to stderr."""
    found: dict[str, list[Result]] = {}
    with ThreadPoolExecutor(at_once) as pool:
        told = list(pool.map(partial(measured_together, length=length, repeats=repeats), groups))
    for result in chain(*(results for results, _ in told)):
        found.setdefault(result.program, []).append(result)
    return found, "".join(stderr for _, stderr in told)


def measured_together(names: list[str], length: float, repeats: int) -> tuple[list[Result], str]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "results.jsonl"
        try:
            stderr = ready.call(write_results, file, names, length, repeats, timeout_s=TIMEOUT_S).stderr
        except subprocess.TimeoutExpired as error:  # what was measured until then counts
            stderr = str(error)
        lines = file.read_text().splitlines() if file.exists() else []
    return [loaded(json.loads(line)) for line in lines], stderr


@known("steps")
def test_every_step_is_counted_once(runs):
    for run in runs:
        assert run.steps["all"].reported == run.steps["all"].truth


@known("steps")
def test_steps_are_of_the_stage_that_they_were(runs):
    for run in runs:
        assert {stage: pair.reported for stage, pair in run.steps.items()} == {
            stage: pair.truth for stage, pair in run.steps.items()
        }


@known("phases")
def test_phases_have_the_shares_of_the_clock(rounds):
    assert not broken(rounds, phases_of)


@known("groups")
def test_timed_modules_have_the_shares_of_the_clock(rounds):
    assert not broken(rounds, groups_of)


def beyond(run: Result, pairs) -> dict[str, str]:
    return {
        name: f"{pair.truth:.1f} % by the clock, {pair.reported:.1f} % reported"
        for name, pair in pairs.items()
        if abs(pair.reported - pair.truth) > bound(run)
    }


@known("calls")
def test_calls_are_exact_or_empty(runs):
    for run in runs:
        wrong = {call: pair for call, pair in run.calls.items() if pair.reported not in {None, pair.truth}}
        assert not wrong


@every_program
def test_what_did_not_run_has_no_row(runs):
    for run in runs:
        assert not [call for call, pair in run.calls.items() if pair.truth == 0]


@every_program
def test_names_are_those_of_the_state_dict(runs):
    for run in runs:
        assert not run.strange_names
        assert not run.missing_names


@every_program
def test_parents_are_the_sums_of_their_children(runs):
    for run in runs:
        assert not run.unequal_parents
