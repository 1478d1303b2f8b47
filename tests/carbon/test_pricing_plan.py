from datetime import UTC, datetime

import pytest

from tests.carbon.worlds import HISTORY_OLD, HOUR, NOON, found, history, planned, usage
from torchwatt.carbon import CarbonOptions
from torchwatt.carbon.facilities import facilities, facility
from torchwatt.carbon.pricing import price_run
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.errors import ConfigError, FactorError

KWH_J = 3.6e6


@pytest.fixture
def write(tmp_path):
    def write_(text, name="f.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_


def grams(run, **asked):
    return found(price_run(run, planned(**asked)), "run", "gwp", "usage", "location").value


def test_the_order_is_user_then_facility_then_hourly_file_then_yearly_table(write):
    file, run = write(history(70.0, 60.0)), usage(KWH_J)
    asked = {"intensity_g_per_kwh": 5.0, "facility": "scaleway/fr-par-2", "factors": file, "region": "FRA", "pue": 1.0}
    assert grams(run, **asked) == 5.0
    del asked["intensity_g_per_kwh"]
    assert grams(run, **asked) == 44.0
    del asked["facility"]
    assert grams(run, **asked) == 70.0
    del asked["factors"]
    assert grams(run, **asked) == pytest.approx(56.039)


def test_hours_are_weighed_with_their_joules(write):
    run, file = usage(1 * KWH_J, 3 * KWH_J), write(history(100.0, 20.0))
    priced = price_run(run, planned(factors=file))
    impact = found(priced, "run", "gwp", "usage", "location")
    assert impact.value == pytest.approx(1 * 100 + 3 * 20)
    assert impact.formula == "energy_j/3.6e6*grid_gwp"
    assert len(impact.factor_ids) == 2
    assert [factor.valid_from.hour for factor in priced.factors] == [12, 13]


@pytest.mark.parametrize("header", [HISTORY_OLD, None])
def test_a_history_file_says_zone_time_and_whether_it_was_estimated(write, header):
    text = history(61.5, 60.0, estimated="true", method="TIME_SLICER_AVERAGE", **({"header": header} if header else {}))
    (factor,) = price_run(usage(1.0), planned(factors=write(text))).factors
    assert (factor.zone, factor.zone_system, factor.value) == ("FR", "electricitymaps", 61.5)
    assert (factor.valid_from, factor.valid_to) == (NOON, datetime(2026, 6, 1, 13, tzinfo=UTC))
    assert (factor.is_estimated, factor.estimation_method) == (True, "TIME_SLICER_AVERAGE")
    assert (factor.basis, factor.perspective, factor.temporal_resolution) == ("lifecycle", "consumption", "hour")
    assert len(factor.source_sha256) == 64


def test_a_file_that_does_not_cover_the_run_falls_back_one_level_and_says_so(write):
    file = write(history(100.0, 90.0))
    priced = price_run(usage(KWH_J, KWH_J, KWH_J), planned(factors=file, region="FRA"))
    (factor,) = priced.factors
    assert factor.value == pytest.approx(56.039)
    assert "1 of 3 hours missing" in factor.fallback_from
    assert [(note.severity, note.code) for note in priced.notes] == [("warning", "FACTOR_FALLBACK")]


def test_a_file_that_does_not_cover_the_run_gives_no_grams_where_nothing_else_was_given(write):
    priced = price_run(usage(KWH_J, KWH_J, KWH_J), planned(factors=write(history(100.0, 90.0))))
    assert priced.impacts == ()
    assert [note.code for note in priced.notes] == ["FACTOR_MISSING"]


def test_an_hour_without_data_stays_missing(write):
    text = history(100.0, 90.0, 80.0, 70.0).replace(",45.0,90.0,", ",,,")
    priced = price_run(usage(KWH_J, KWH_J), planned(factors=write(text)))
    assert [note.code for note in priced.notes] == ["FACTOR_MISSING"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.replace("FR,50.0", "DE,50.0"), "one zone"),
        (lambda t: t.replace("13:00:00", "12:30:00"), "whole hour"),
        (lambda t: t.replace("2026-06-01 13", "2026-06-02 12"), "not hourly"),
        (lambda t: t.replace(",100.0,", ",-1,"), "carbon intensity"),
        (lambda t: t.replace(",100.0,", ",nan,"), "carbon intensity"),
        (lambda t: t.replace(",100.0,", ",a lot,"), "no number"),
        (lambda t: t.replace("(Life cycle)", "(LifeCycle?)"), "no column"),
        (lambda t: t.replace("13:00:00", "12:00:00"), "not hourly"),
    ],
)
def test_a_damaged_history_file_is_refused_with_a_reason(write, change, complaint):
    with pytest.raises(FactorError, match=complaint):
        planned(factors=write(change(history(100.0, 90.0))))


def test_two_answers_to_which_grid_are_refused(write):
    with pytest.raises(ConfigError, match="different grids"):
        planned(factors=write(history(1.0, 2.0, zone="DE")), region="FRA")
    with pytest.raises(ConfigError, match="different grids"):
        planned(facility="scaleway/nl-ams-1", region="FRA")


def test_two_years_of_history_are_one_grid(write):
    first, second = write(history(10.0, 20.0), "a.csv"), write(history(30.0, 40.0, start=14), "b.csv")
    assert grams(usage(*[KWH_J] * 4), factors=[first, second]) == pytest.approx(100.0)


def test_a_facility_brings_pue_water_and_mix_with_the_page_they_come_from():
    priced = price_run(usage(KWH_J), planned(facility="scaleway/pl-waw-2"))
    by_kind = {factor.kind: factor for factor in priced.factors}
    assert by_kind["grid_gwp"].value == 615.0
    assert (by_kind["pue"].value, by_kind["pue"].lo, by_kind["pue"].hi) == (1.24, 1.24, 1.32)
    assert "scaleway/docs-content" in by_kind["pue"].source_url
    impact = found(priced, "run", "gwp", "usage", "location")
    assert impact.value == pytest.approx(1.24 * 615)
    assert impact.lo < impact.value < impact.hi
    assert impact.dominant_uncertainty == "energy_j"


def test_a_facility_that_publishes_water_gives_litres():
    impact = found(price_run(usage(KWH_J), planned(facility="scaleway/fr-par-2")), "run", "wcf", "usage", "location")
    assert impact.value == pytest.approx(0.25)
    assert impact.formula == "energy_j/3.6e6*(wue)"


def test_every_preset_is_possible():
    for name in facilities():
        for factor in facility(name, NOON):
            assert factor.value >= (1 if factor.kind == "pue" else 0)
            assert factor.lo is None or factor.lo <= factor.value <= factor.hi


def test_an_old_preset_and_an_unknown_one_are_refused():
    with pytest.raises(FactorError, match="more than two years"):
        make_plan(CarbonOptions(facility="scaleway/fr-par-1"), datetime(2027, 7, 1, tzinfo=UTC))
    with pytest.raises(FactorError, match="scaleway/fr-par-1"):
        planned(facility="scaleway/fr-par1")


def test_the_hour_of_noon_is_noon():
    assert NOON.timestamp() == HOUR * 3600
