"""How often the live view is updated."""

from hypothesis import given
from hypothesis import strategies as st

from torchwatt.notebook.live_updater import MAX_PERIOD_S, MIN_PERIOD_S, UPDATE_SHARE, update_period_s


@given(st.floats(0.0, 1.0))
def test_updates_stay_within_their_share_of_a_cpu_and_figures_change_within_two_seconds(cost_s):
    period_s = update_period_s(cost_s)
    assert MIN_PERIOD_S <= period_s <= MAX_PERIOD_S < 2
    assert cost_s <= UPDATE_SHARE * period_s * (1 + 1e-9) or period_s == MAX_PERIOD_S
    assert period_s == MIN_PERIOD_S or cost_s >= UPDATE_SHARE * period_s * (1 - 1e-9)  # not rarer than its cost demands
