"""Laws of the interval of a group of rows: what its rows and their domain tell, and no more."""

from math import fsum, isclose, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reports import CPU, GPU, bare_report, sample_report
from torchwatt.attribution.host_attribution import shrink_alike_energy
from torchwatt.core.ledger import Entry, Ledger, interval_around
from torchwatt.views.layer_groups import VIEWS, GroupIntervals, cut_groups, layer_groups


def ledger_of(domain, rows, half_j):
    """Return a ledger with rows of (joules, half an interval), and half the interval of its total."""
    entries = tuple(
        Entry(
            domain, f"m{n}", "forward", joules, *interval_around(joules, half), None, None, 0.1, 1, "fit", "apportioned"
        )
        for n, (joules, half) in enumerate(rows)
    )  # fmt: skip
    total_j = fsum(joules for joules, _ in rows)
    lo_j, hi_j = interval_around(total_j, half_j)
    return Ledger(
        domain, total_j, entries, "counter", "measured", 1.0, 1.0, energy_lo_j=lo_j, energy_hi_j=hi_j
    )  # fmt: skip


@st.composite
def drawn_rows(draw):
    """Draw joules, and errors of rows as they are: shared ones, and own ones that cancel in the total."""
    count = draw(st.integers(2, 12))
    joules = np.array(draw(st.lists(st.floats(50, 100), min_size=count, max_size=count)))
    shared = draw(st.floats(0, 0.1)) * joules
    own = np.array([draw(st.floats(0, 5)) for _ in range(count)])
    covariance = np.outer(shared, shared) + np.diag(own**2)
    if fsum(own**2) > 0:  # squares of the smallest floats are 0
        covariance -= np.outer(own**2, own**2) / fsum(own**2)
    return joules, np.maximum(covariance, -np.inf)


@given(drawn_rows(), st.data())
def test_a_group_is_never_narrower_than_its_errors_and_never_wider_than_their_sum(drawn, data):
    """Whatever the covariance of the rows: here they drift together, and their own errors cancel in the total."""
    joules, covariance = drawn
    halves = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    total_half_j = sqrt(max(covariance.sum(), 0.0))
    ledger = ledger_of(CPU, list(zip(joules.tolist(), halves.tolist(), strict=True)), total_half_j)
    members = sorted(data.draw(st.sets(st.integers(0, len(joules) - 1), min_size=1)))
    lo_j, hi_j = GroupIntervals((ledger,)).bound([ledger.entries[i] for i in members])
    true_half_j = sqrt(max(covariance[np.ix_(members, members)].sum(), 0.0))
    energy_j = fsum(joules[members])
    assert true_half_j - 1e-6 <= hi_j - energy_j <= fsum(halves[members]) + 1e-6
    assert isclose(energy_j - lo_j, hi_j - energy_j, rel_tol=1e-6, abs_tol=1e-6)
    if len(members) == 1:
        (entry,) = (ledger.entries[i] for i in members)
        assert (lo_j, hi_j) == (entry.energy_self_lo_j, entry.energy_self_hi_j)
    if len(members) == len(joules):
        assert (lo_j, hi_j) == (ledger.energy_lo_j, ledger.energy_hi_j)


def test_all_rows_have_the_interval_of_the_run_in_every_view():
    report = sample_report()
    intervals = GroupIntervals(report.counted)
    entries = [entry for ledger in report.counted for entry in ledger.entries]
    assert intervals.bound(entries) == report.interval_j
    for view in VIEWS:
        groups = cut_groups(report, layer_groups(report, view), 3)
        linear_hi_j = fsum(entry.energy_self_hi_j for entry in entries if entry.energy_self_hi_j is not None)
        assert all(group.hi_j is None or group.energy_j <= group.hi_j <= linear_hi_j for group in groups)


def test_an_interval_needs_one_of_each_row():
    known, unknown = ledger_of(CPU, [(10.0, 1.0), (20.0, 2.0)], 3.0), ledger_of(GPU, [(5.0, None), (5.0, 0.5)], None)
    intervals = GroupIntervals((known, unknown))
    assert intervals.bound([]) is None
    assert intervals.bound(unknown.entries) is None
    assert intervals.bound([*known.entries, unknown.entries[0]]) is None
    assert intervals.bound([*known.entries, unknown.entries[1]]) == (27.0 + 4.5, 33.0 + 5.5)


def test_large_groups_are_bounded_by_the_rows_outside_of_them():
    rows = [(10.0, 1.0)] * 10
    ledger = ledger_of(CPU, rows, 2.0)
    halves = [GroupIntervals((ledger,)).bound(ledger.entries[:count])[1] - 10.0 * count for count in range(1, 11)]
    assert halves == pytest.approx([1, 2, 3, 4, 5, 6, 5, 4, 3, 2])


def test_alike_modules_share_an_error_so_their_half_widths_do_not_add_in_quadrature():
    """Why a group is not narrower: rows that were shrunk towards each other miss by the same joules."""
    rng, count = np.random.default_rng(0), 16
    draws = 1.0 + 0.15 * rng.standard_normal((400, count))
    after = [
        shrink_alike_energy(row, np.full(count, 0.15), np.ones(count), np.zeros(count, dtype=np.int64)) for row in draws
    ]
    error_j = np.std([energy_j.sum() for energy_j, _ in after])
    added_j, quadrature_j = (
        np.mean([combine(sd_j) for _, sd_j in after]) for combine in (np.sum, lambda sd_j: np.sqrt((sd_j**2).sum()))
    )
    assert quadrature_j < 0.5 * error_j
    assert 0.7 * error_j < added_j


def test_a_report_without_layers_has_no_groups():
    assert all(layer_groups(bare_report(ledgers=()), view) == () for view in VIEWS)
