"""The rate of a live view: joules per step or counted unit over the last seconds."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.session.live_rate import RECENT_NS, RecentRate, UnitRate, UnitRates

S = 1_000_000_000


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 100)), min_size=1, max_size=60))
def test_a_steady_rate_is_that_rate_whatever_the_counts(parts):
    rate, t_ns, count = RecentRate(0), 0, 0
    assert rate.mean_j() is None
    for seconds, steps in parts:
        t_ns, count = t_ns + seconds * S, count + steps
        rate.add(t_ns, count, 2.5 * count)
        assert rate.mean_j() == pytest.approx(2.5)


def test_what_is_long_past_does_not_count():
    rate = RecentRate(0)
    rate.add(S, 10, 1000.0)
    for second in range(2, 40):
        rate.add(second * S, 10 + second, 1000.0 + 3.0 * second)
    assert rate.mean_j() == pytest.approx(3.0)
    assert len(rate._points) <= RECENT_NS // S + 2
    assert rate.per_second() == pytest.approx(1.0)


def test_the_first_counted_unit_comes_before_the_step():
    pulse = SimpleNamespace(start_ns=0, energy_j={"cpu": 30.0, "ram": 10.0})
    rates = UnitRates(pulse)
    assert rates.update({}, 1.5) == UnitRate("step", 1.5)
    assert rates.update({}, None) == UnitRate("step", None)
    rate = rates.update({"token": 20.0, "image": 4.0}, 1.5)
    assert (rate.unit, rate.unit_j) == ("token", 2.0)
    assert (rate.per_second or 0.0) > 0
