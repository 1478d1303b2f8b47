"""Rows of epochs, from reports made by hand."""

from dataclasses import replace
from math import fsum, isclose, isnan

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reports import bare_report, sample_report
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.report import Window
from torchwatt.core.terms import Domain
from torchwatt.reports.dataframes import OUTSIDE_EPOCHS, epoch_rows
from torchwatt.views import to_text

BASE = sample_report(windows=())


def window(kind, number, start_s, end_s, energy_j):
    start_ns, end_ns = (BASE.start_ns + round(t * 1e9) for t in (start_s, end_s))
    return Window(f"{kind} {number}", start_ns, end_ns, energy_j, kind)


def test_an_epoch_is_its_steps_its_evaluations_and_its_checkpoints():
    report = replace(
        BASE,
        windows=(
            window("epoch", 0, 2, 10, 1000.0),
            window("evaluation", 0, 8, 9, 100.0),
            window("checkpoint", 0, 9, 10, 50.0),
            window("epoch", 1, 10, 20, 2000.0),
            window("evaluation", 1, 21, 22, 30.0),
        ),
    )
    first, second, outside = epoch_rows(report)
    assert (first["train_j"], first["evaluation_j"], first["checkpoint_j"]) == (850.0, 100.0, 50.0)
    assert (second["train_j"], second["evaluation_j"]) == (2000.0, 0.0)
    assert first["step_j"] == 850.0 / first["steps"]
    assert outside["epoch"] == OUTSIDE_EPOCHS
    assert isclose(outside["energy_j"], report.energy_j - 3000.0)
    assert isclose(outside["train_j"] + 30.0, outside["energy_j"])
    # A validation batch is no training step: an epoch's joules a step are of those that trained.
    assert first["steps"] + second["steps"] + outside["steps"] == sum(s.stage == "train" for s in report.steps) == 32


@given(st.lists(st.floats(0, 500), min_size=1, max_size=8))
def test_rows_add_up_to_the_report(joules):
    windows = tuple(window("epoch", i, i, i + 1, energy_j) for i, energy_j in enumerate(joules))
    rows = epoch_rows(replace(BASE, windows=windows))
    assert isclose(fsum(row["energy_j"] for row in rows), BASE.energy_j, rel_tol=1e-12)
    assert isclose(fsum(row["duration_s"] for row in rows), BASE.duration_s)


def test_what_is_unknown_stays_unknown_in_each_sum_that_needs_it():
    rows = epoch_rows(replace(BASE, windows=(window("epoch", 0, 0, 9, 5.0), window("evaluation", 0, 1, 2, None))))
    assert (rows[0]["energy_j"], rows[0]["train_j"], rows[0]["evaluation_j"], rows[0]["step_j"]) == (
        5.0,
        None,
        None,
        None,
    )
    rows = epoch_rows(replace(BASE, windows=(window("epoch", 0, 0, 9, None),)))
    assert rows[0]["energy_j"] is rows[0]["train_j"] is rows[1]["energy_j"] is None
    assert epoch_rows(bare_report()) == []


def test_a_table_lists_some_windows_and_counts_the_rest():
    windows = tuple(window("epoch", i, i / 10, (i + 1) / 10, 1.0) for i in range(100))
    text = to_text(replace(BASE, windows=windows))
    assert text.count("inside the total") == 12
    assert "... and 88 more windows" in text


@given(
    st.lists(st.tuples(st.integers(-20, 120), st.integers(0, 60)), max_size=20),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20)), max_size=2),
)
def test_many_windows_at_once_are_each_as_alone(windows, silent):
    t_ns = np.arange(0, 101, 5)
    curve = EnergyCurve(
        Domain("gpu", 0), t_ns, np.cumsum(t_ns % 7) * 1.0, "counter", "measured",
        silent=tuple((lo, lo + n) for lo, n in silent),
    )  # fmt: skip
    bounds = np.array([(lo, lo + n) for lo, n in windows], dtype=np.int64).reshape(-1, 2)
    for (lo, hi), joules in zip(bounds.tolist(), curve.parts_j(*bounds.T).tolist(), strict=True):
        seen = lo < 100 and hi > 0  # else all of it lies in the half interval that is forgiven
        inside = seen and lo >= -5 and hi <= 105 and not any(a < hi and a + n > lo for a, n in silent)
        assert curve.is_metered(lo, hi) == inside == (not isnan(joules))
        assert not inside or joules == curve.between(lo, hi)
