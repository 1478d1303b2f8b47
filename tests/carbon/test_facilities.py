"""Facilities are data: a table in the package, and a user's own file of the same columns."""

from datetime import UTC, datetime

import pytest

from torchwatt.carbon.facilities import facilities, facility
from torchwatt.carbon.pricing import price_run
from torchwatt.core.errors import FactorError
from torchwatt.core.units import J_PER_KWH

from .worlds import NOON, planned, usage

HEAD = "facility,kind,value,unit,source_name,zone,validated_at\n"
ROWS = [
    "ours/hall-1,grid_gwp,100,g{CO2e}/kW.h,Grid operator,DEU,2026-01-01T00:00:00Z",
    "ours/hall-1,pue,1.5,1,Landlord,DEU,2026-01-01T00:00:00Z",
]


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    def write(rows=ROWS, head=HEAD):
        path = tmp_path / "facilities.csv"
        path.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
        monkeypatch.setenv("TORCHWATT_FACILITIES", str(path))
        return path

    return write


def test_a_users_file_adds_facilities(own_file):
    own_file()
    priced = price_run(usage(J_PER_KWH), planned(facility="ours/hall-1"))
    grams = next(i.value for i in priced.impacts if (i.subject, i.criterion, i.phase) == ("run", "gwp", "usage"))
    assert grams == pytest.approx(1.5 * 100)
    assert {factor.provenance for factor in priced.factors} == {"declared"}
    assert all(len(factor.source_sha256) == 64 for factor in priced.factors)
    assert facility("scaleway/fr-par-2", NOON)  # those of the package stay


def test_a_users_numbers_replace_those_of_the_package(own_file):
    own_file([row.replace("ours/hall-1", "scaleway/fr-par-2") for row in ROWS])
    assert {factor.kind: factor.value for factor in facility("scaleway/fr-par-2", NOON)} == {
        "grid_gwp": 100.0,
        "pue": 1.5,
    }


def test_a_users_facility_grows_stale_only_where_its_file_says_when_it_was_validated(own_file):
    late = datetime(2028, 6, 1, tzinfo=UTC)
    own_file()
    with pytest.raises(FactorError, match="two years"):
        facility("ours/hall-1", late)
    own_file([row.replace("2026-01-01T00:00:00Z", "") for row in ROWS])
    assert facility("ours/hall-1", late)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0].replace("ours/hall-1", "")], "facility is empty"),
        ([ROWS[0], ROWS[0]], "grid_gwp is given twice"),
        ([ROWS[0], ROWS[1].replace("DEU", "FRA")], "one zone"),
        ([ROWS[0].replace("grid_gwp", "lifetime").replace("g{CO2e}/kW.h", "a")], "lifetime"),
        ([ROWS[0], ROWS[1].replace("2026-01-01", "2025-01-01")], "validated_at"),
        ([ROWS[0].replace(",100,", ",nan,")], "finite"),
        ([ROWS[0].replace("2026-01-01T00:00:00Z", "spring")], "validated_at"),
    ],
)
def test_a_wrong_row_is_refused_with_its_number(own_file, rows, message):
    path = own_file(rows)
    with pytest.raises(FactorError, match=message) as caught:
        facility("ours/hall-1", NOON)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHWATT_FACILITIES", str(tmp_path / "none.csv"))
    with pytest.raises(FactorError, match=r"TORCHWATT_FACILITIES.*cannot read"):
        facility("scaleway/fr-par-2", NOON)


def test_the_packages_own_table_has_a_source_for_each_number():
    assert len(facilities()) == 9
    for name in facilities():
        for factor in facility(name, NOON):
            assert factor.source_url.startswith("https://")
            assert factor.provenance == "sourced"
            assert factor.source_version
