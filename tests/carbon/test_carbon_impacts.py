import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.carbon import impacts, resolve_intensity, resolve_pue
from torchwatt.core.errors import FactorError
from torchwatt.core.terms import PROVENANCES

GRID = resolve_intensity(None, intensity_g_per_kwh=50)
PUE = resolve_pue(1.2)
joules = st.floats(0, 1e15)


def test_one_kilowatt_hour_is_the_intensity():
    (impact,) = impacts({"run": (3.6e6, "measured")}, GRID, None)
    assert impact.value == 50.0
    assert impact.formula == "energy_j/3.6e6*grid_gwp"
    assert impact.factor_ids == (GRID.factor_id,)
    assert (impact.criterion, impact.phase, impact.unit) == ("gwp", "usage", "g{CO2e}")


def test_pue_multiplies_once():
    (impact,) = impacts({"run": (3.6e6, "measured")}, GRID, PUE)
    assert impact.value == pytest.approx(60.0)
    assert impact.formula == "energy_j/3.6e6*pue*grid_gwp"
    assert set(impact.factor_ids) == {GRID.factor_id, PUE.factor_id}


@given(joules, joules)
def test_parts_add_up_to_the_whole(a, b):
    parts = impacts({"device:gpu:0": (a, "measured"), "device:cpu:0": (b, "measured")}, GRID, PUE)
    (whole,) = impacts({"run": (a + b, "measured")}, GRID, PUE)
    assert sum(part.value for part in parts) == pytest.approx(whole.value, rel=1e-12)


@given(st.sampled_from(PROVENANCES))
def test_grams_are_never_better_known_than_their_inputs(provenance):
    (impact,) = impacts({"run": (1.0, provenance)}, GRID, PUE)
    assert impact.provenance == "derived"
    worst = max(PROVENANCES.index(provenance), PROVENANCES.index("declared"))
    assert PROVENANCES.index(impact.weakest_input) == worst


def test_no_grid_no_grams():
    assert impacts({"run": (1.0, "measured")}, None, PUE) == ()


def test_a_swapped_factor_is_refused():
    with pytest.raises(FactorError, match="grid_gwp"):
        impacts({"run": (1.0, "measured")}, PUE, None)
    with pytest.raises(FactorError, match="pue"):
        impacts({"run": (1.0, "measured")}, GRID, GRID)


@pytest.mark.parametrize("energy_j", [-1.0, float("nan"), float("inf")])
def test_an_impossible_energy_is_refused(energy_j):
    with pytest.raises(FactorError, match="run"):
        impacts({"run": (energy_j, "measured")}, GRID, None)
