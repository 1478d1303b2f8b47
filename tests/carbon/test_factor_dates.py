"""Factors hold for their dates and places: what has expired or is of another country is refused, or says so."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.carbon.worlds import NOON, planned, usage
from torchwatt.carbon.pricing import price_run
from torchwatt.core.errors import ConfigError, FactorError

KWH_J = 3.6e6
HEAD = "kind,value,unit,source_name,zone,data_year,valid_from,valid_to\n"


@pytest.fixture
def write(tmp_path):
    def write_(*rows, name="f.csv"):
        path = tmp_path / name
        path.write_text(HEAD + "".join(f"{row}\n" for row in rows), encoding="utf-8")
        return path

    return write_


def grid(value=50, zone="", year="", start="", end="", kind="grid_gwp"):
    unit = {"grid_gwp": "g{CO2e}/kW.h", "residual_mix": "g{CO2e}/kW.h", "contract_gwp": "g{CO2e}/kW.h"}.get(kind, "1")
    return f"{kind},{value},{unit},operator,{zone},{year},{start},{end}"


EXPIRED = {"start": "2025-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}  # the run is of June 2026


@pytest.mark.parametrize("kind", ["grid_gwp", "residual_mix", "contract_gwp", "pue"])
def test_what_has_expired_is_refused_and_what_is_allowed_says_so_in_its_row(write, kind):
    path = write(grid(1.5, kind=kind, **EXPIRED), *([grid()] if kind == "pue" else []))
    with pytest.raises(FactorError, match=r"has expired: .*2026-01-01T00:00Z.*--allow-expired"):
        planned(factors=path)
    priced = price_run(usage(KWH_J), planned(factors=path, allow_expired=True))
    (factor,) = [factor for factor in priced.factors if factor.kind == kind]
    assert "applied outside of its dates: valid from 2025-01-01T00:00Z to 2026-01-01T00:00Z" in factor.coverage_note
    assert any(factor.factor_id in impact.factor_ids for impact in priced.impacts)


def test_what_does_not_hold_yet_is_refused(write):
    with pytest.raises(FactorError, match="does not hold yet"):
        planned(factors=write(grid(start="2027-01-01T00:00:00Z")))


def test_what_expires_during_the_run_is_refused_when_it_is_priced(write):
    plan = planned(factors=write(grid(end="2026-06-01T13:30:00Z")))
    run = replace(usage(KWH_J, KWH_J), start=NOON, end=NOON + timedelta(minutes=90))
    assert price_run(run, plan).impacts
    with pytest.raises(FactorError, match="has expired"):
        price_run(replace(run, end=NOON + timedelta(minutes=91)), plan)


def test_embodied_figures_and_presets_have_dates_too(write, tmp_path):
    path = tmp_path / "e.csv"
    head = "kind,value,unit,source_name,device,valid_to\n"
    rows = ["embodied_gwp,164,kg{CO2e},x,gpu,", "lifetime,4,a,x,gpu,2026-01-01T00:00:00Z", "share,1,1,x,gpu,"]
    path.write_text(head + "\n".join(rows) + "\n")
    with pytest.raises(FactorError, match="lifetime of x has expired"):
        planned(factors=path)
    from torchwatt.carbon.facilities import facility

    late = datetime(2027, 12, 1, tzinfo=UTC)
    with pytest.raises(FactorError, match="two years"):
        facility("scaleway/fr-par-2", late)
    assert all("allow_expired" in f.coverage_note for f in facility("scaleway/fr-par-2", late, allow_expired=True))


@pytest.mark.parametrize(
    ("year", "codes"), [(2025, []), (2026, []), (2021, []), (2020, ["FACTOR_OLD"]), (2027, ["FACTOR_YEAR"])]
)
def test_the_year_of_the_data_is_compared_with_the_run(write, year, codes):
    priced = price_run(usage(KWH_J), planned(factors=write(grid(year=year))))
    assert [note.code for note in priced.notes] == codes
    assert all(str(year) in note.message for note in priced.notes)


@pytest.mark.parametrize("zone", ["POL", "PL", "Poland", "poland", "PL/mazowieckie"])
def test_a_polish_file_and_a_french_region_are_a_contradiction(write, zone):
    with pytest.raises(ConfigError, match="different grids"):
        planned(factors=write(grid(650, zone=zone)), region="FRA")
    with pytest.raises(ConfigError, match="different grids"):
        planned(factors=write(grid(1.2, zone=zone, kind="pue")), region="FRA")
    with pytest.raises(ConfigError, match="different grids"):
        planned(factors=write(grid(650, zone=zone)), facility="scaleway/fr-par-2")
    with pytest.raises(ConfigError, match="different grids"):
        planned(factors=write(grid(650, zone=zone)), region="FRA", intensity_g_per_kwh=5.0)


def test_own_hours_of_another_country_and_two_places_in_one_file_are_contradictions(write, tmp_path):
    hours = tmp_path / "hours.csv"
    hours.write_text("start,g_per_kwh,zone\n2026-06-01T12:00Z,650,POL\n2026-06-01T13:00Z,650,POL\n")
    with pytest.raises(ConfigError, match="different grids"):
        planned(factors=hours, region="FRA")
    with pytest.raises(ConfigError, match="different grids"):
        planned(factors=write(grid(50, zone="FRA"), grid(1.2, zone="POL", kind="pue")))
    with pytest.raises(ConfigError, match="different grids"):
        planned(factors=write(grid(50, zone="USA/texas")), region="USA/california")


@pytest.mark.parametrize(
    ("zone", "region"),
    [("FRA", "FRA"), ("FR", "France"), ("", "FRA"), ("our data centre", "FRA"), ("USA", "USA/california"),
     ("US-CAL-CISO", "USA/california"), ("USA/california", "USA-CA"), ("DE-LU", "DEU"), ("UK", "GBR")],
)  # fmt: skip
def test_one_place_under_two_names_is_none(write, zone, region):
    assert planned(factors=write(grid(zone=zone)), region=region).location


def test_a_contract_may_be_about_electricity_from_elsewhere(write):
    assert planned(factors=write(grid(10, zone="NOR", kind="contract_gwp")), region="FRA").market
