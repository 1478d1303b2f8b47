"""A mean power divides by the time that was metered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.ledger import mean_power_w
from torchwatt.core.terms import Domain

S = 10**9


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(1, 500))
def test_the_mean_of_a_constant_power_is_that_power_whatever_was_silent(heard, watts):
    t_ns = np.arange(len(heard) + 1) * S
    energy_j = np.concatenate(([0.0], np.cumsum([watts * ok for ok in heard])))
    silent = tuple((int(t_ns[i]), int(t_ns[i + 1])) for i, ok in enumerate(heard) if not ok)
    curve = EnergyCurve(Domain("gpu", 0), t_ns, energy_j, "power_integral", "measured", silent=silent)
    mean_w = curve.mean_w(-5 * S, len(heard) * S + 5 * S)
    assert mean_w == (pytest.approx(watts) if any(heard) else None)


@given(st.lists(st.tuples(st.floats(0.1, 500), st.floats(0.1, 100)), min_size=1, max_size=8))
def test_domains_that_were_metered_for_unlike_times_add_up_their_powers(parts):
    assert mean_power_w((watts * known_s, known_s) for watts, known_s in parts) == pytest.approx(
        sum(w for w, _ in parts)
    )


def test_what_was_not_metered_has_no_mean_power():
    assert mean_power_w([]) is None
    assert mean_power_w([(5.0, 0.0)]) is None
