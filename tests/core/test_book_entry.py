"""How an entry, its interval and its rounding are made, once for all meters."""

from math import fsum

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.ledger import absorb_rounding, add_clause, book_entry, interval_around, sum_if_known
from torchwatt.core.terms import Domain, Slot

joules = st.floats(0, 1e9)
some_joules = st.none() | joules


@given(joules, some_joules, some_joules)
def test_the_static_part_and_the_rest_are_the_energy_and_the_interval_contains_it(energy_j, static_j, half_j):
    entry = book_entry(
        Domain("cpu", 0),
        Slot("a", "forward"),
        energy_j,
        1.0,
        method="fit",
        provenance="apportioned",
        static_j=static_j,
        interval_j=interval_around(energy_j, half_j),
    )
    assert (entry.energy_static_j is None) == (entry.energy_dynamic_j is None) == (static_j is None)
    if static_j is not None:
        assert entry.energy_static_j == min(static_j, energy_j)
        assert entry.energy_dynamic_j >= 0
        assert np.isclose(entry.energy_static_j + entry.energy_dynamic_j, energy_j)
    assert (entry.energy_self_lo_j is None) == (entry.energy_self_hi_j is None) == (half_j is None)
    if half_j is not None:
        assert 0 <= entry.energy_self_lo_j <= energy_j <= entry.energy_self_hi_j


@given(st.lists(joules, min_size=1, max_size=50))
def test_parts_add_up_to_the_total_after_their_rounding_is_absorbed(parts_j):
    total_j = float(np.sum(parts_j))
    exact_j = absorb_rounding(np.array(parts_j), total_j)
    assert np.isclose(fsum(exact_j), total_j, rtol=1e-15, atol=1e-300)
    assert (exact_j != np.array(parts_j)).sum() <= 1


@given(st.lists(some_joules))
def test_a_sum_with_an_unknown_part_is_unknown(values):
    found = sum_if_known(iter(values))
    assert found is None if None in values else found == fsum(values)


def test_a_clause_is_added_before_the_full_stop():
    assert add_clause("cpu:0: measured.", "not in the total") == "cpu:0: measured; not in the total."
