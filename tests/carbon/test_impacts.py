from math import hypot

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.carbon.worlds import found, planned, usage
from torchwatt.audit.formula import evaluate
from torchwatt.carbon.impacts import UncertainValue, evaluate_with_interval
from torchwatt.carbon.pricing import price_run
from torchwatt.core.errors import FactorError
from torchwatt.core.terms import PROVENANCES

GRID = planned(intensity_g_per_kwh=50)
BOTH = planned(intensity_g_per_kwh=50, market=12, pue=(1.2, 1.1, 1.4))
joules = st.floats(0, 1e15)


def test_one_kilowatt_hour_is_the_intensity():
    priced = price_run(usage(3.6e6), GRID)
    impact = found(priced, "run", "gwp", "usage", "location")
    assert impact.value == 50.0
    assert impact.formula == "energy_j/3.6e6*grid_gwp"
    assert impact.factor_ids == tuple(factor.factor_id for factor in priced.factors)
    assert impact.unit == "g{CO2e}"
    assert impact.scenario == "as_run"


def test_location_and_market_stand_side_by_side_and_pue_multiplies_each_once():
    priced = price_run(usage(3.6e6), BOTH)
    assert found(priced, "run", "gwp", "usage", "location").value == pytest.approx(60.0)
    assert found(priced, "run", "gwp", "usage", "market").value == pytest.approx(14.4)
    assert found(priced, "run", "gwp", "usage", "market").formula == "energy_j/3.6e6*pue*contract_gwp"


def test_without_a_contract_there_is_no_market_total():
    assert {i.accounting_method for i in price_run(usage(3.6e6), GRID).impacts} == {"location"}


@given(joules, joules)
def test_parts_add_up_to_the_whole(a, b):
    parts = [found(price_run(usage(part), BOTH), "run", "gwp", "usage", "location").value for part in (a, b)]
    whole = found(price_run(usage(a + b), BOTH), "run", "gwp", "usage", "location").value
    assert sum(parts) == pytest.approx(whole, rel=1e-12)


@given(joules)
def test_the_text_of_every_formula_gives_the_number_beside_it(energy_j):
    run = usage(energy_j)
    priced = price_run(run, BOTH)
    values = {factor.kind: factor.value for factor in priced.factors} | {"energy_j": run.subjects[0].energy_j}
    for impact in priced.impacts:
        assert evaluate(impact.formula, values) == impact.value


@given(st.sampled_from(PROVENANCES))
def test_grams_are_never_better_known_than_their_inputs(provenance):
    impact = found(price_run(usage(1.0, provenance=provenance), GRID), "run", "gwp", "usage", "location")
    assert impact.provenance == "derived"
    worst = max(PROVENANCES.index(provenance), PROVENANCES.index("declared"))
    assert PROVENANCES.index(impact.weakest_input) == worst


def test_nothing_named_nothing_computed():
    priced = price_run(usage(1.0), planned(pue=1.2))
    assert priced.impacts == ()
    assert priced.factors == ()


@pytest.mark.parametrize("energy_j", [-1.0, float("nan"), float("inf")])
def test_an_impossible_energy_is_refused(energy_j):
    with pytest.raises(FactorError, match="energy_j"):
        price_run(usage(energy_j), GRID)


def test_an_interval_adds_its_terms_in_quadrature_and_names_the_largest():
    result = evaluate_with_interval(
        lambda at: at["energy_j"] * at["pue"],
        {"energy_j": UncertainValue(100.0, 90.0, 110.0), "pue": UncertainValue(1.2, 1.1, 1.4)},
    )
    assert result.lo == pytest.approx(120 - hypot(12, 10))
    assert result.hi == pytest.approx(120 + hypot(12, 20))
    assert result.dominant == "pue"


def test_a_term_without_a_stated_range_leaves_no_interval_and_is_named():
    impact = found(price_run(usage(3.6e6), BOTH), "run", "gwp", "usage", "location")
    assert (impact.lo, impact.hi) == (None, None)
    assert impact.dominant_uncertainty == "not stated for grid_gwp"


@given(st.floats(1, 1e9), st.floats(0, 0.9), st.floats(0, 0.9))
def test_a_wider_input_never_gives_a_narrower_result(value, a, b):
    narrow, wide = sorted((a, b))
    low, high = (
        evaluate_with_interval(
            lambda at: at["x"] * at["y"],
            {"x": UncertainValue(value, value * (1 - r), value * (1 + r)), "y": UncertainValue(2, 1, 3)},
        )
        for r in (narrow, wide)
    )
    assert high.hi - high.lo >= low.hi - low.lo
    assert low.lo <= low.value <= low.hi
