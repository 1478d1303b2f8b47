"""Rows of steps: in a long run one stands for several, and its number says for which."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.support.reports import sample_report
from torchwatt.audit import write_bundle
from torchwatt.audit.report_loader import load_report
from torchwatt.audit.verification.bundle_facts import WindowFact
from torchwatt.audit.verification.run_checks import _step_count
from torchwatt.core.report import Step


@pytest.mark.parametrize(
    ("names", "told", "found"),
    [
        (["0", "1", "2"], 3, 3),
        (["0", "1", "2"], 4, 3),  # nothing says that the last row is more than one step
        (["0", "2", "4"], 6, 6),
        (["0", "2", "4"], 4, 3),
        (["0", "2", "2"], 6, 3),
        (["1", "2"], 3, 2),
        (["0", "x"], 2, 2),
        ([], 0, 0),
    ],
)
def test_numbers_of_rows_say_how_many_steps_there_are(names, told, found):
    windows = {i: WindowFact(i, "step", i, i + 1, None, name) for i, name in enumerate(names)}
    facts = SimpleNamespace(windows=windows, run={"step_count": told})
    assert _step_count(facts) == found


def test_a_step_of_no_length_is_one_step_as_it_was(tmp_path):
    """It begins with the next one, and the longer of the two stands first in the table."""
    report = sample_report()
    first, second = report.steps[:2]
    short = replace(second, end_ns=second.start_ns)
    third = Step(short.index + 1, short.end_ns, second.end_ns, second.energy_j)
    again = load_report(
        write_bundle(replace(report, steps=(first, short, third), traced_steps=None), tmp_path / "audit")
    )
    assert [(step.index, step.count) for step in again.steps] == [(0, 1), (1, 1), (2, 1)]
    assert again.step_count == 3
