"""`torchwatt run` against plain Python: the same exit status, output and traceback, and the report is kept."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.cli.programs import EVERYDAY, PROGRAMS, seen

pytestmark = pytest.mark.timeout(900)  # the first test waits for all programs
BESIDE = 3  # at a time: most of a program's time is waiting
RARE = [name for name in PROGRAMS if name not in EVERYDAY]


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
def everyday(tmp_path_factory):
    return ended(EVERYDAY, tmp_path_factory.mktemp("everyday"))


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    return ended(RARE, tmp_path_factory.mktemp("rare"))


def same(name, plain, run):
    assert run.status == plain.status, run.stderr
    assert run.stdout == plain.stdout
    assert run.stderr == plain.stderr
    assert bool(run.report) == PROGRAMS[name].has_report
    assert not plain.report


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYDAY)
def test_a_program_ends_as_in_plain_python_and_its_report_is_kept(name, everyday):
    same(name, *everyday[name]())


@pytest.mark.heavy
@pytest.mark.parametrize("name", RARE)
def test_so_does_a_rare_one(name, rare):
    same(name, *rare[name]())


def test_a_program_that_becomes_another_one_is_told(everyday):
    assert "replaced itself by" in everyday["exec"]()[1].report
    assert "replaced" not in everyday["exec that fails"]()[1].report
