"""The cost of a run: its kilowatt-hours at the price that the user declares, in files and in every view."""

import pytest

import torchwatt as tw
from tests.support.priced_bundles import priced
from tests.support.reports import bare_report, sample_report
from torchwatt.audit import read_bundle, verify, write_bundle
from torchwatt.carbon.declared_factors import declared_price
from torchwatt.cli.command_parser import run_command
from torchwatt.core.errors import ConfigError
from torchwatt.reports.report_result import JobRun
from torchwatt.views import to_html_page, to_payload, to_text
from torchwatt.views.number_format import format_money

KWH = sample_report().energy_j / 3.6e6


def test_the_cost_is_kilowatt_hours_times_the_price_and_shown_as_declared():
    report = priced(sample_report(), price_per_kwh="0.32 EUR")
    assert report.cost.value == pytest.approx(KWH * 0.32)
    assert (report.cost.unit, report.cost.formula) == ("{EUR}", "energy_j/3.6e6*price")
    assert (report.cost.provenance, report.cost.weakest_input) == ("derived", "declared")
    assert JobRun(report).cost == report.cost.value
    line = "0.000658 EUR · 2.06 Wh at 0.32 EUR/kWh (declared)"
    assert f"cost       {line}" in to_text(report)
    assert {"label": "cost", "value": "0.000658 EUR", "detail": line.partition(" · ")[2]} in to_payload(report)["rates"]
    assert "0.000658 EUR" in to_html_page(report)


def test_the_building_pays_for_its_cooling_as_well():
    report = priced(sample_report(), price_per_kwh="0.32 EUR", pue=1.5)
    assert report.cost.value == pytest.approx(KWH * 0.32 * 1.5)
    assert "2.06 Wh × PUE 1.50 (declared) at 0.32 EUR/kWh (declared)" in to_text(report)


def test_without_a_price_or_without_joules_there_is_no_cost():
    assert sample_report().cost is None
    assert JobRun(sample_report()).cost is None
    assert priced(bare_report(), price_per_kwh="0.32 EUR").cost is None
    assert "cost  " not in to_text(sample_report())


def test_a_bundle_holds_price_and_cost_and_verifies(tmp_path):
    folder = write_bundle(priced(sample_report(), price_per_kwh="0.32 EUR"), tmp_path / "bundle")
    assert verify(folder).ok, str(verify(folder))
    bundle = read_bundle(folder)
    (price,) = bundle["factor"]
    assert (price["kind"], price["value"], price["unit"], price["provenance"]) == (
        "price", 0.32, "{EUR}/kW.h", "declared",
    )  # fmt: skip
    (cost,) = [row for row in bundle["impact"] if row["subject"] == "run"]
    assert (cost["criterion"], cost["unit"], cost["accounting_method"]) == ("cost", "{EUR}", "na")
    assert cost["value"] == pytest.approx(KWH * 0.32)


def test_a_cost_in_another_currency_than_its_price_is_found(tmp_path):
    from tests.audit.planted.forger import Forger

    forger = Forger(
        write_bundle(priced(sample_report(), price_per_kwh="0.32 EUR"), tmp_path / "good", samples="csv.gz")
    )
    for row in forger.tables["impact"]:
        row["unit"] = "{USD}"
    found = verify(forger.reseal(tmp_path / "forged"))
    assert {(finding.code, finding.column) for finding in found.findings} == {("LAW", "unit")}


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [("0.32 EUR", 0.32, "EUR"), ("12¥", 12.0, "¥"), (" .3 CHF ", 0.3, "CHF"), ("0 kr", 0.0, "kr")],
)
def test_a_price_is_a_number_and_a_currency(text, value, unit):
    factor = declared_price(text)
    assert (factor.value, factor.unit) == (value, f"{{{unit}}}/kW.h")


@pytest.mark.parametrize("bad", [0.32, "0.32", "EUR", "-1 EUR", "1e400 EUR", "0.32 {EUR}", "0,32 EUR", True, "1 E/R"])
def test_anything_else_is_refused_with_an_example(bad):
    with pytest.raises(ConfigError, match="give a number and its currency"):
        tw.profile(price_per_kwh=bad).__enter__()


def test_reprice_takes_a_price(tmp_path, capsys):
    folder = write_bundle(priced(sample_report()), tmp_path / "bundle")
    command = ["reprice", str(folder), "--price-per-kwh", "0.1 USD", "--scenario", "new", "--to", str(tmp_path / "new")]
    assert run_command(command) == 0
    capsys.readouterr()
    assert verify(tmp_path / "new").ok
    costs = [row for row in read_bundle(tmp_path / "new")["impact"] if row["criterion"] == "cost"]
    assert {(row["unit"], row["scenario"]) for row in costs} == {("{USD}", "repriced:new")}


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "0.00 EUR"), (6.18e-8, "0.0000000618 EUR"), (0.32, "0.320 EUR"), (9.999, "10.0 EUR"), (1234.4, "1234 EUR")],
)
def test_money_has_three_figures_and_no_prefix(amount, text):
    assert format_money(amount, "EUR") == text
