from pathlib import Path

import pytest

from tests.carbon.worlds import found, planned, usage
from torchwatt.carbon import PricedSubject
from torchwatt.carbon.pricing import price_run
from torchwatt.core.errors import FactorError

KWH_J = 3.6e6
HEAD = "kind,value,unit,source_name,lo,hi,accounting_method,source_url,device\n"
MADE = (
    "embodied_gwp,164,kg{CO2e},maker's PCF,150,180,,https://example.org/pcf,gpu\n"
    "lifetime,4,a,our policy,3,6,,,gpu\n"
    "share,0.5,1,our scheduler,0.5,0.5,,,gpu\n"
)
YEAR_S = 31_557_600


@pytest.fixture
def write(tmp_path):
    def write_(text):
        path = tmp_path / "factors.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write_


def test_a_file_gives_location_market_and_pue_with_their_ranges(write):
    rows = (
        "grid_gwp,50,g{CO2e}/kW.h,TSO,40,60,location,https://example.org,\n"
        "residual_mix,300,g{CO2e}/kW.h,AIB,290,310,market,,\n"
        "pue,1.2,1,landlord,1.1,1.3,,,\n"
    )
    priced = price_run(usage(KWH_J), planned(factors=write(HEAD + rows)))
    location = found(priced, "run", "gwp", "usage", "location")
    assert location.value == pytest.approx(60.0)
    assert location.lo < 60 < location.hi
    assert location.dominant_uncertainty == "grid_gwp"
    assert found(priced, "run", "gwp", "usage", "market").formula == "energy_j/3.6e6*pue*residual_mix"
    by_kind = {factor.kind: factor for factor in priced.factors}
    assert by_kind["grid_gwp"].provenance == "sourced"
    assert by_kind["pue"].provenance == "declared"
    assert by_kind["pue"].source_sha256


def test_embodied_is_time_share_and_life_and_the_score_needs_it(write):
    file = write(HEAD + MADE + "grid_gwp,50,g{CO2e}/kW.h,TSO,40,60,location,https://example.org,\n")
    run = usage(KWH_J, unit="token", units=1000.0, duration_s=7200.0)
    priced = price_run(run, planned(factors=file))
    made = found(priced, "run", "gwp", "embodied", "na")
    assert made.value == pytest.approx(164_000 * 7200 / (4 * YEAR_S) * 0.5)
    assert made.dominant_uncertainty == "lifetime"
    assert made.lo < made.value < made.hi
    assert found(priced, "device:gpu:0", "gwp", "embodied", "na").value == made.value
    total = found(priced, "run", "gwp", "total", "location")
    assert total.value == pytest.approx(50 + made.value)
    score = found(priced, "run", "sci", "total", "location")
    assert score.value == pytest.approx(total.value / 1000)
    assert score.unit == "g{CO2e}/{token}"
    assert set(score.factor_ids) == {factor.factor_id for factor in priced.factors}


def test_devices_with_the_same_figures_are_counted_and_others_numbered():
    from torchwatt.audit.formula import evaluate
    from torchwatt.carbon.declared_factors import embodied_impacts, for_device, group_embodied
    from torchwatt.core.factor import Factor, with_factor_id

    def factor(kind, value):
        return with_factor_id(Factor("", kind, value, "x", "declared", f"{kind} {value}"))

    life = factor("lifetime", 4.0)
    pairs = [("gpu", factor("embodied_gwp", 164.0)), ("gpu", life), ("gpu", factor("share", 1.0))]
    pairs += [("cpu", factor("embodied_gwp", 25.0)), ("cpu", life), ("cpu", factor("share", 0.5))]
    known = group_embodied(pairs)
    devices = [for_device(known, name) for name in ("gpu:0", "gpu:1", "cpu:0")]
    (impact,) = embodied_impacts(PricedSubject("run", 1.0, "measured"), devices, float(YEAR_S))
    assert impact.value == pytest.approx((2 * 164 + 0.5 * 25) * 1000 / 4)
    by_id = {f.factor_id: f for _, f in pairs}
    values = {"duration_s": float(YEAR_S)}
    for kind in ("embodied_gwp", "share", "lifetime"):
        ids = [name for name in impact.factor_ids if by_id[name].kind == kind]
        names = [kind] if len(ids) == 1 else [f"{kind}_{i}" for i in range(1, len(ids) + 1)]
        values |= {name: by_id[i].value for name, i in zip(names, ids, strict=True)}
    assert evaluate(impact.formula, values) == impact.value


def test_no_score_without_embodied_and_none_without_figures(write):
    priced = price_run(usage(KWH_J), planned(intensity_g_per_kwh=50))
    assert {impact.phase for impact in priced.impacts} == {"usage"}


def test_a_device_without_figures_is_named(write):
    priced = price_run(usage(KWH_J, device="cpu:0"), planned(factors=write(HEAD + MADE)))
    assert priced.impacts == ()
    assert [(note.code, "cpu:0" in note.message) for note in priced.notes] == [("EMBODIED_PARTIAL", True)]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("grid_gwp,0.05,kg{CO2e}/kW.h,TSO,,,,,", "must be in g"),
        ("grid_gwp,x,g{CO2e}/kW.h,TSO,,,,,", "row 1, column value"),
        ("grid_gwp,inf,g{CO2e}/kW.h,TSO,,,,,", "finite"),
        ("grid_gwp,-5,g{CO2e}/kW.h,TSO,,,,,", "not possible"),
        ("grid_gwp,5,g{CO2e}/kW.h,TSO,6,7,,,", "not between"),
        ("grid_gwp,5,g{CO2e}/kW.h,TSO,4,,,,", "both lo and hi"),
        ("grid_gwp,5,g{CO2e}/kW.h,,,,,,", "source_name is empty"),
        ("grid_co2,5,g{CO2e}/kW.h,TSO,,,,,", "unknown kind"),
        ("pue,0.9,1,TSO,,,,,", "not possible"),
        ("share,1.5,1,TSO,,,,,gpu", "at most 1"),
        ("lifetime,4,a,TSO,,,,,gpu", "missing: share"),
        ("embodied_gwp,4,kg{CO2e},TSO,,,,,", "column `device`"),
        ("pue,1.1,1,TSO,,,,,\npue,1.2,1,TSO,,,,,", "two numbers"),
        ("pue,1.1", "cells"),
        ("contract_gwp,5,g{CO2e}/kW.h,PPA,,,location,,", "cannot be 'location'"),
        ("pue,1.1,1,site,,,market,,", "cannot be 'market'"),
    ],
)
def test_a_bad_row_is_refused_with_its_place_and_reason(write, row, complaint):
    with pytest.raises(FactorError, match=complaint):
        planned(factors=write(HEAD + row + "\n"))


def test_an_unknown_column_and_a_missing_file_are_refused(write, tmp_path):
    with pytest.raises(FactorError, match="colour"):
        planned(factors=write("kind,value,unit,source_name,colour\n"))
    with pytest.raises(FactorError, match="cannot read"):
        planned(factors=tmp_path / "none.csv")


def test_the_example_of_the_documentation_works(write):
    page = (Path(__file__).parents[2] / "docs" / "carbon.md").read_text(encoding="utf-8")
    example = page.split("```csv\n")[1].split("```")[0]
    priced = price_run(usage(KWH_J), planned(factors=write(example)))
    assert {impact.criterion for impact in priced.impacts} == {"gwp", "sci"}
    assert found(priced, "run", "gwp", "total", "market").value > found(priced, "run", "gwp", "total", "location").value


@pytest.mark.parametrize("number", ["\u0665\u0666", "\uff15\uff16", "5_6", "\u096b.\u0967", "5\u066b6"])
@pytest.mark.parametrize("column", ["value", "lo", "hi", "data_year", "valid_from"])
def test_digits_of_other_scripts_are_refused(write, number, column):
    """Python would read them as 56; an auditor's spreadsheet would not."""
    cells = {"kind": "grid_gwp", "value": "56", "unit": "g{CO2e}/kW.h", "source_name": "TSO", "lo": "50", "hi": "60"}
    cells |= {"data_year": "2026", "valid_from": "2026-01-01T00:00:00Z"}
    cells[column] = number if column != "valid_from" else f"20{number}-01-01T00:00:00Z"
    with pytest.raises(FactorError, match=rf"column {column}: .*digits 0 to 9"):
        planned(factors=write(",".join(cells) + "\n" + ",".join(cells.values()) + "\n"))
