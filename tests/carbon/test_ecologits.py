"""ecologits as a second source: its real table where it is installed, and one of its shape where it is not."""

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import ModuleType

import pytest

from tests.carbon.worlds import found, planned, usage
from torchwatt.carbon import ecologits as ecologits_module
from torchwatt.carbon.pricing import price_run

KWH_J = 3.6e6


@dataclass
class Mix:
    zone: str
    gwp: float
    pe: float
    adpe: float = 5e-8
    wue: float = 3.5
    warnings: list = field(default_factory=list)


@pytest.fixture
def ecologits(monkeypatch):
    """Put a package of ecologits' shape in place, whatever is installed."""
    mixes = {"FRA": Mix("FRA", 0.04144, 9.3135), "NOR": Mix("NOR", 0.02811, 0.1386)}
    package, repository = ModuleType("ecologits"), ModuleType("ecologits.electricity_mix_repository")
    repository.electricity_mixes = ModuleType("mixes")
    repository.electricity_mixes.find_electricity_mix = mixes.get
    monkeypatch.setitem(sys.modules, "ecologits", package)
    monkeypatch.setitem(sys.modules, "ecologits.electricity_mix_repository", repository)
    monkeypatch.setattr(ecologits_module, "installed_version", lambda: "0.0.test")


def test_two_sources_that_disagree_are_the_interval(ecologits):
    priced = price_run(usage(KWH_J, rel=0.01), planned(region="FRA", pue=(1.0, 1.0, 1.0)))
    grid = next(factor for factor in priced.factors if factor.kind == "grid_gwp")
    assert grid.value == pytest.approx(56.039)
    assert (grid.lo, grid.hi) == (pytest.approx(41.44), grid.value)
    assert "EcoLogits 0.0.test has 41.44" in grid.coverage_note
    impact = found(priced, "run", "gwp", "usage", "location")
    assert impact.dominant_uncertainty == "grid_gwp"
    assert impact.lo < 42


def test_other_criteria_come_with_their_formula(ecologits):
    priced = price_run(usage(KWH_J), planned(region="FRA", pue=1.5))
    assert found(priced, "run", "pe", "usage", "location").value == pytest.approx(1.5 * 9.3135)
    assert found(priced, "run", "adpe", "usage", "location").value == pytest.approx(1.5 * 5e-8)
    water = found(priced, "run", "wcf", "usage", "location")
    assert water.value == pytest.approx(1.5 * 3.5)
    assert water.formula == "energy_j/3.6e6*(pue*grid_wue)"


def test_water_of_the_site_and_of_the_electricity_are_added(ecologits):
    priced = price_run(usage(KWH_J), planned(facility="scaleway/fr-par-2"))
    water = found(priced, "run", "wcf", "usage", "location")
    assert water.value == pytest.approx(0.25 + 1.16 * 3.5)
    assert water.formula == "energy_j/3.6e6*(wue+pue*grid_wue)"


def test_impossible_primary_energy_is_kept_and_flagged(ecologits):
    priced = price_run(usage(KWH_J), planned(region="NOR"))
    assert found(priced, "run", "pe", "usage", "location").value == pytest.approx(0.1386)
    assert [note.code for note in priced.notes] == ["PE_BELOW_3_6"]
    assert "PE_BELOW_3_6" in next(f for f in priced.factors if f.kind == "grid_pe").coverage_note


def test_a_direct_number_gets_no_life_cycle_interval(ecologits):
    (grid,) = price_run(usage(KWH_J), planned(region="USA/california")).factors
    assert grid.lo is None


def test_without_the_package_nothing_is_added(monkeypatch):
    monkeypatch.setattr(ecologits_module, "installed_version", lambda: "")
    priced = price_run(usage(KWH_J), planned(region="FRA"))
    assert [factor.kind for factor in priced.factors] == ["grid_gwp"]


@pytest.mark.skipif(find_spec("ecologits") is None, reason="needs the extra: pip install 'torchwatt[ecologits]'")
def test_the_real_table_has_the_shape_that_is_read():
    ecologits_module.installed_version.cache_clear()
    factors = {factor.kind: factor for factor in ecologits_module.other_criteria("FRA")}
    assert set(factors) == {"grid_adpe", "grid_pe", "grid_wue"}
    assert factors["grid_pe"].value > 3.6
    (grid,) = (f for f in price_run(usage(KWH_J), planned(region="FRA")).factors if f.kind == "grid_gwp")
    assert grid.lo == pytest.approx(41.44)
    flagged = [
        zone
        for zone in ("NOR", "ALB")
        if any(ecologits_module.PE_FLAG in f.coverage_note for f in ecologits_module.other_criteria(zone))
    ]
    assert flagged == ["NOR", "ALB"]
