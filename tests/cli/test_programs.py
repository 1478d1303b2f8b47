"""`torchwatt run` against plain Python: the same exit status, output and traceback, and the report is kept.

`make test` runs some of the programs, which the commit chooses; the others are heavy.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.cli.programs import PROGRAMS, seen
from tests.support.chosen import chosen

pytestmark = pytest.mark.timeout(900)  # the first test waits for all programs
BESIDE = 3  # at a time: most of a program's time is waiting
REPLACED = ("exec", "exec that fails")  # a test of its own reads their reports
USUAL = [name for name in PROGRAMS if name in chosen(PROGRAMS, 3) | set(REPLACED)]
OTHERS = [name for name in PROGRAMS if name not in USUAL]


def ended(names, folder):
    """Run programs both ways; return what was seen of each by name, or what went wrong."""

    def both(name):
        here = folder / str(names.index(name))
        here.mkdir()
        return [seen(PROGRAMS[name], here / how, profiled=how == "run") for how in ("plain", "run")]

    with ThreadPoolExecutor(BESIDE) as pool:
        waiting = {name: pool.submit(both, name) for name in names}
    return {name: partial(future.result) for name, future in waiting.items()}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return ended(USUAL, tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return ended(OTHERS, tmp_path_factory.mktemp("others"))


def same(name, plain, run):
    assert run.status == plain.status, run.stderr
    assert run.stdout == plain.stdout
    assert run.stderr == plain.stderr
    assert bool(run.report) == PROGRAMS[name].has_report
    assert not plain.report


@pytest.mark.slow
@pytest.mark.parametrize("name", USUAL)
def test_a_program_ends_as_in_plain_python_and_its_report_is_kept(name, usual):
    same(name, *usual[name]())


@pytest.mark.heavy
@pytest.mark.parametrize("name", OTHERS)
def test_so_does_every_other_one(name, others):
    same(name, *others[name]())


def test_a_program_that_becomes_another_one_is_told(usual):
    assert "replaced itself by" in usual["exec"]()[1].report
    assert "replaced" not in usual["exec that fails"]()[1].report
