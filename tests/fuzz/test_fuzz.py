"""The short form of the fuzzing: every found case again, every valid input, and some drawn ones for every parser."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.cases import CORPUS, content, kept
from tests.fuzz.strategies import inputs
from tests.fuzz.targets import TARGETS, check

QUICK = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
LARGEST_CORPUS = 300_000  # bytes of all found cases


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_reads_what_is_valid(name):
    assert "read" in {check(name, data) for data in TARGETS[name].seeds()[:2]} or name in NEVER_WHOLE


# A bundle with one file replaced is refused by one of its uses; no index names a run that is not there.
NEVER_WHOLE = {"bundle_use", "store_index"}


@pytest.mark.parametrize("name", TARGETS)
def test_a_found_case_breaks_nothing_any_more(name):
    for path in kept(name):
        check(name, content(path))


def test_found_cases_are_of_targets_and_small():
    folders = {path.name for path in CORPUS.iterdir() if path.is_dir()}
    assert folders <= set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*.bin*")) < LARGEST_CORPUS


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_input_ends_in_a_result_or_in_our_own_error(name):
    @QUICK
    @given(inputs(name))
    def law(data: bytes) -> None:
        check(name, data)

    law()
