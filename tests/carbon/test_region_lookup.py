import csv
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.carbon import HOW_TO_GET_GRAMS
from torchwatt.carbon.declared_factors import resolve_pue
from torchwatt.carbon.region_lookup import find_place, resolve_intensity
from torchwatt.core.errors import ConfigError, FactorError


@pytest.mark.parametrize("region", ["FRA", "fra", "FR", " France "])
def test_a_country_has_several_spellings_and_one_factor(region):
    factor = resolve_intensity(region)
    assert factor == resolve_intensity("FRA")
    assert factor.value == pytest.approx(56.039)
    assert (factor.zone, factor.data_year, factor.basis) == ("FRA", 2023, "lifecycle")
    assert factor.unit == "g{CO2e}/kW.h"
    assert factor.provenance == "sourced"
    assert factor.licence == "CC BY 4.0"
    assert factor.source_version.startswith("codecarbon 3.")


@pytest.mark.parametrize(
    ("region", "zone", "basis", "gas"),
    [
        ("USA/california", "USA/california", "direct", "CO2e"),
        ("USA-CA", "USA/california", "direct", "CO2e"),
        ("US-NY", "USA/new york", "direct", "CO2e"),
        ("usa/new_york", "USA/new york", "direct", "CO2e"),
        ("CAN/quebec", "CAN/quebec", "combustion_only", "CO2"),
        ("CAN/Québec", "CAN/quebec", "combustion_only", "CO2"),
        ("CA-QC", "CAN/quebec", "combustion_only", "CO2"),
        ("CN-BJ", "CHN/beijing", "direct", "CO2"),
        ("CHN/Beijing Municipality", "CHN/beijing", "direct", "CO2"),
        ("SWE/SE4", "SWE/SE4", "lifecycle", "CO2e"),
        ("Guinea-Bissau", "GNB", "lifecycle", "CO2e"),
    ],
)
def test_a_part_of_a_country_says_its_own_basis(region, zone, basis, gas):
    factor = resolve_intensity(region)
    assert (factor.zone, factor.basis, factor.gas) == (zone, basis, gas)


@pytest.mark.parametrize(
    ("region", "zone"),
    [
        ("eu-west-3", "FRA"),  # AWS: Europe (Paris)
        ("EU-WEST-3", "FRA"),
        ("eu-west-3b", "FRA"),
        ("us-central1", "USA/iowa"),  # Google: Council Bluffs
        ("us-central1-a", "USA/iowa"),
        ("europe-west12", "ITA"),
        ("northeurope", "IRL"),  # Azure: Ireland
        ("swedencentral", "SWE"),
        ("ca-central-1", "CAN/quebec"),
        ("UK", "GBR"),
        ("Great Britain", "GBR"),
        ("Türkiye", "TUR"),
        ("Czech Republic", "CZE"),
        ("The Netherlands", "NLD"),
        ("south korea", "KOR"),
        ("DE", "DEU"),
    ],
)
def test_regions_of_clouds_and_english_names_are_known(region, zone):
    assert find_place(region).zone == zone


def test_every_name_of_the_table_has_a_factor_and_a_source():
    table = files("torchwatt.carbon").joinpath("region_names.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert len({row["name"] for row in rows}) == len(rows) > 130
    for row in rows:
        assert find_place(row["name"]).zone == row["zone"]
        assert row["source_url"].startswith("https://")


@pytest.mark.parametrize("region", ["USA/california", "CAN/quebec", "CN-BJ", "SWE/SE4", "CAF"])
def test_lower_bounds_say_so(region):
    assert "lower bound" in resolve_intensity(region).coverage_note


@pytest.mark.parametrize("region", ["USA/california", "CAN/quebec", "CN-BJ"])
def test_a_number_on_another_basis_says_that_it_cannot_be_compared(region):
    assert "not comparable with the life-cycle numbers" in resolve_intensity(region).coverage_note


@pytest.mark.parametrize(
    ("region", "hint"),
    [
        ("FRX", "FRA (France)"),
        ("eu-west-9", "eu-west-3 (FRA)"),
        ("us-centrall1", "us-central1 (USA/iowa)"),
        ("Germny", "DEU (Germany)"),
        ("califronia", "USA/california"),
        ("california", "USA/california"),
        ("SE3", "SWE/SE3"),
        ("USA/calfornia", "USA/california"),
        ("DEU/bavaria", "'DEU' for the mean of Germany"),
        ("CHN/tibet", "'CHN' alone gives the mean of China"),
        ("georgia", "a country (GEO) and a state (USA/georgia)"),
        ("", "intensity_g_per_kwh="),
        ("world", "intensity_g_per_kwh="),
    ],
)
def test_an_unknown_region_is_an_error_with_a_way_out(region, hint):
    with pytest.raises(FactorError) as caught:
        resolve_intensity(region)
    assert hint in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_gives_a_factor_or_a_factor_error(text):
    try:
        factor = resolve_intensity(text)
    except FactorError:
        return
    assert factor.zone
    assert factor.source_name


def test_nothing_given_is_no_factor_and_a_sentence_that_helps():
    assert resolve_intensity(None) is None
    assert resolve_pue(None) is None
    assert "region=" in HOW_TO_GET_GRAMS
    assert "intensity_g_per_kwh=" in HOW_TO_GET_GRAMS


def test_the_users_own_number_wins_and_is_declared():
    factor = resolve_intensity("FRA", intensity_g_per_kwh=12)
    assert (factor.value, factor.provenance, factor.zone) == (12.0, "declared", "FRA")
    assert factor.basis == "unknown"


def test_zero_is_a_number_and_not_a_missing_one():
    assert resolve_intensity(None, intensity_g_per_kwh=0).value == 0.0


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_an_impossible_intensity_is_refused(value):
    with pytest.raises(ConfigError, match="intensity_g_per_kwh"):
        resolve_intensity(None, intensity_g_per_kwh=value)


@pytest.mark.parametrize("value", [0.99, 0, -1, float("nan"), float("inf")])
def test_an_impossible_pue_is_refused(value):
    with pytest.raises(ConfigError, match="pue"):
        resolve_pue(value)


def test_a_factor_is_named_by_its_content():
    assert resolve_intensity("FRA").factor_id == resolve_intensity("France").factor_id
    assert resolve_intensity("FRA").factor_id != resolve_intensity("DEU").factor_id
    assert resolve_pue(1.2).factor_id != resolve_pue(1.3).factor_id


@pytest.mark.parametrize(
    ("region", "label"),
    [
        ("germny", "Germany"), ("frnace", "France"), ("spian", "Spain"), ("brasil", "Brazil"),
        ("untied kingdom", "United Kingdom"), ("korea", "South Korea"), ("czech", "Czechia"),
        ("USA/califrnia", "USA/california"),
    ],
)  # fmt: skip
def test_a_misspelt_region_is_suggested_rightly(region, label):
    with pytest.raises(FactorError, match=f"did you mean .*{label}"):
        resolve_intensity(region)


@pytest.mark.parametrize("region", ["narnia", "wakanda", "gondor", "mordor", "westeros", "nowhere", "xy"])
def test_a_name_that_is_like_no_region_gets_no_suggestion(region):
    with pytest.raises(FactorError, match="no grid factor") as error:
        resolve_intensity(region)
    assert "did you mean" not in str(error.value)
