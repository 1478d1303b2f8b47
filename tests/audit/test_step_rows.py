"""Rows of steps: in a long run one stands for several, and its number says for which."""

from types import SimpleNamespace

import pytest

from torchwatt.audit.verification.bundle_facts import WindowFact
from torchwatt.audit.verification.run_checks import _step_count


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
