"""The shape of codecarbon's tables, which promise nothing: when this fails, the adapter must be read again."""

import sys
from subprocess import run

import pytest

from torchwatt.carbon import grid_tables
from torchwatt.carbon.grid_tables import ALPHA3_OF_ALPHA2, CANADA

COUNTRIES = grid_tables.world()


def test_countries_have_code_name_intensity_and_year():
    assert len(COUNTRIES) > 200
    for code, place in COUNTRIES.items():
        assert len(code) == 3
        assert code.isupper()
        assert 0 <= place.g_per_kwh < 1500
        assert isinstance(place.year, int)
        assert place.label


def test_no_two_countries_share_a_name():
    names = [name for place in COUNTRIES.values() for name in place.names]
    assert len(names) == len(set(names))


def test_every_country_has_two_letters():
    assert sorted(ALPHA3_OF_ALPHA2.values()) == sorted(COUNTRIES)


@pytest.mark.parametrize(
    ("table", "count", "year"),
    [
        (grid_tables.usa, 51, 2023),
        (grid_tables.canada, 13, None),
        (grid_tables.china, 30, 2023),
        (grid_tables.nordic, 10, 2025),
    ],
)
def test_parts_of_countries(table, count, year):
    places = table()
    assert len(places) == count
    assert {place.year for place in places} == {year}
    assert len({place.zone for place in places}) == count
    assert all(0 < place.g_per_kwh < 1500 for place in places)


def test_canada_agrees_with_codecarbons_own_arithmetic():
    from codecarbon.core.emissions import Emissions
    from codecarbon.input import DataSource

    mixes = DataSource().get_country_energy_mix_data("can")
    for place in grid_tables.canada():
        theirs = Emissions._region_energy_mix_to_emissions_rate(mixes[place.zone.removeprefix("CAN/")])
        assert place.g_per_kwh == pytest.approx(theirs.kgs_per_kWh * 1000, rel=1e-12)


def test_the_pound_is_codecarbons_pound():
    from codecarbon.core.units import EmissionsPerKWh

    assert pytest.approx(grid_tables.G_PER_KWH_FROM_LB_PER_MWH / 1000) == EmissionsPerKWh.LBS_MWH_TO_KG_KWH


def test_provinces_of_canada_are_the_tables():
    assert {f"CAN/{name}" for name in CANADA.values()} == {place.zone for place in grid_tables.canada()}


def test_the_room_opens_codecarbon_at_first_use_and_starts_nothing():
    code = (
        "import sys, threading, torchwatt.carbon as c\n"
        "assert 'codecarbon' not in sys.modules and 'pandas' not in sys.modules\n"
        "from torchwatt.carbon.region_lookup import resolve_intensity; resolve_intensity('FRA')\n"
        "assert 'codecarbon.input' in sys.modules\n"
        "assert threading.active_count() == 1\n"
    )
    result = run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
