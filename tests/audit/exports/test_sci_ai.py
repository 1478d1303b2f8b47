"""SCI for AI: two scores apart, and the right values of the two worked examples that its text has wrong."""

import re
from dataclasses import replace

import pytest

from tests.audit.exports import golden
from tests.support.priced_bundles import priced
from tests.support.reports import another_report, sample_report
from torchwatt.audit import read_bundle, write_bundle
from torchwatt.audit.bundle import impact
from torchwatt.audit.exports import export
from torchwatt.audit.exports.markdown_reports import CarbonTerms, FunctionalUnit, sci_ai_markdown
from torchwatt.core.errors import BundleError
from torchwatt.core.requests import TokenRow

KG = 1000.0
USAGE_G = 7402.148 / 3.6e6 * 1.2 * 50
MADE_G = 164_000 * 24 / (4 * 31_557_600) * 0.5


def rows(text, title):
    """Return the cells of the table of one view."""
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]


def with_grams(bundle, usage_g, embodied_g, **run):
    """Return the bundle with other grams and declarations."""
    made = {("usage", "location"): usage_g, ("embodied", "na"): embodied_g}
    changed = tuple(
        {**row, "value": made.get((row["phase"], row["accounting_method"]), row["value"])}
        if (row["subject"], row["criterion"]) == ("run", "gwp")
        else row
        for row in bundle["impact"]
    )
    return replace(bundle, tables={**bundle.tables, "impact": changed, "run": ({**bundle.run, **run},)})


def test_the_consumers_example_is_130_g_per_million_tokens_and_not_0_13(bundle):
    """9.1.1 has 6,500 kg over 50 billion tokens; 9.1.3 prints 0.13 g per million."""
    made = with_grams(
        read_bundle(bundle), 5000 * KG, 1500 * KG, persona="consumer", functional_unit="token",
        functional_unit_count=50e9,
    )  # fmt: skip
    ((unit, _, _, operational, embodied, score, _),) = rows(sci_ai_markdown([made]).decode(), "Consumer")
    assert unit == "1,000,000 tokens"
    assert (operational, embodied, score) == ("100", "30.0", "130")


def test_the_providers_example_is_30000_kg_per_billion_parameters_and_neither_3000_nor_30(bundle):
    """9.2.2 divides 75,000 kg by 2.5 billion and prints 3000; 9.2.3 prints 30 kg."""
    made = with_grams(
        read_bundle(bundle), 70_000 * KG, 5_000 * KG, persona="provider", functional_unit="image",
        params_total=2_500_000_000, params_active=None,
    )  # fmt: skip
    ((unit, basis, _, _, _, score, _),) = rows(sci_ai_markdown([made]).decode(), "Provider")
    assert (unit, basis) == ("1,000,000,000 parameters", "gross")
    assert float(score) == 30_000 * KG


def test_the_right_examples_of_the_text_are_ours_too():
    flop = FunctionalUnit("FLOP", 5e22, "gross", "", 1e15)
    assert flop.rate_g(CarbonTerms(180_000 * KG, 20_000 * KG).total_g) == pytest.approx(4.0)
    inference = FunctionalUnit("inference", 40e6, "gross", "")
    assert inference.rate_g(CarbonTerms(3200 * KG, 0.0).total_g) == pytest.approx(0.08)


def requests():
    """Build two requests with two stages each: 110 tokens in, 10 of them cached, 40 out."""
    counts = ((100, 30, 10), (10, 10, 0))
    return tuple(
        TokenRow(i, i, stage, given, out, cached, None, None, None, None, None, None)
        for i, (given, out, cached) in enumerate(counts)
        for stage in ("prefill", "decode")
    )


def test_two_views_have_two_scores_and_no_sum(bundle, factors, tmp_path):
    served = replace(another_report(7), tokens=requests(), units={"token": 1.0})
    service = write_bundle(priced(served, factors=factors), tmp_path / "service")
    training = write_bundle(
        priced(
            another_report(
                1, declared={"lifecycle_stage": "pretraining", "params_total": 22_000_000, "flops_total": 2e15}
            ),
            factors=factors,
        ),
        tmp_path / "training",
    )
    text = export([service, training], "sci-ai", tmp_path / "sci_ai.md").read_text()
    golden.check("sci_ai.md", text)
    tokens = {(row[0], row[1]): float(row[5]) for row in rows(text, "Consumer")}
    score_g = USAGE_G + MADE_G
    assert tokens == {
        ("1,000,000 tokens", "gross"): pytest.approx(score_g / 150 * 1e6, rel=5e-3),
        ("1,000,000 tokens", "effective"): pytest.approx(score_g / 140 * 1e6, rel=5e-3),
        ("1,000,000 output tokens", "effective"): pytest.approx(score_g / 40 * 1e6, rel=5e-3),
    }
    provider = {row[0]: float(row[5]) for row in rows(text, "Provider")}
    assert provider == {
        "1e15 FLOP": pytest.approx(score_g / 2, rel=5e-3),
        "1,000 training tokens": pytest.approx(score_g / 1310.72, rel=5e-3),
        "1,000,000,000 parameters": pytest.approx(score_g / 0.022, rel=5e-3),
    }
    assert "never added" in text
    # No figure of the report is that of both views together.
    both = {f"{2 * score_g:.{digits}g}" for digits in (2, 3, 4)}
    assert both.isdisjoint(re.findall(r"[0-9.]+", text))


def test_tokens_that_are_unknown_are_no_unit(factors, tmp_path):
    unknown = tuple(replace(row, output_tokens=None) for row in requests())
    bundle = write_bundle(priced(sample_report(tokens=unknown), factors=factors), tmp_path / "b")
    text = export([bundle], "sci-ai", tmp_path / "s.md").read_text()
    assert rows(text, "Consumer") == []
    assert "no score: the tokens of some requests are unknown" in text


def test_without_embodied_factors_the_term_is_unknown_and_there_is_no_score(tmp_path):
    report = priced(sample_report(), intensity_g_per_kwh=50)
    bundle = write_bundle(report, tmp_path / "b")
    text = export([bundle], "sci-ai", tmp_path / "s.md", {"persona": "consumer"}).read_text()
    ((_, _, _, operational, embodied, score, _),) = rows(text, "Consumer")
    assert float(operational) > 0
    assert (embodied, score) == ("unknown", "unknown")
    assert "no score: the embodied term shall be included" in text


def test_without_a_grid_both_terms_say_so(joules_only, tmp_path):
    text = export([joules_only], "sci-ai", tmp_path / "s.md", {"persona": "provider", "params_total": "10"}).read_text()
    assert "no score: no grid was named" in text
    assert {row[5] for row in rows(text, "Provider")} == {"unknown"}


def test_a_providers_unit_is_flop_training_token_or_parameter(bundle, tmp_path):
    made = with_grams(read_bundle(bundle), 1.0, 1.0, persona="provider", functional_unit="image", params_total=None)
    text = sci_ai_markdown([made]).decode()
    assert rows(text, "Provider") == []
    assert "no score: FLOP, training tokens and parameters are unknown" in text


def test_models_of_different_sizes_have_no_score_per_parameter(bundle):
    one, two = (
        with_grams(
            read_bundle(bundle), 1.0, 1.0, persona="provider", run_id=name, params_total=size, params_active=None
        )
        for name, size in (("a", 10), ("b", 20))
    )
    two = replace(
        two, tables={**two.tables, "run": ({**two.run, "started_at": two.run["ended_at"], "duration_s": 23.0},)}
    )
    text = sci_ai_markdown([one, two]).decode()
    assert "models of different sizes" in text


def test_the_view_must_be_told(bundle, tmp_path):
    with pytest.raises(BundleError, match="--set persona=consumer or --set persona=provider"):
        export([bundle], "sci-ai", tmp_path / "s.md")


def test_a_trainings_score_has_all_of_its_runs_or_none(factors, tmp_path):
    for number, status in ((1, "complete"), (2, "aborted")):
        why = "" if status == "complete" else "KeyboardInterrupt"
        report = priced(another_report(number, name="gpt", status=status, exit_reason=why), factors=factors)
        write_bundle(report, tmp_path / "runs" / report.run_id)
    declared = {"params_total": "1000000000", "flops_total": "1e15"}
    text = export([tmp_path / "runs"], "sci-ai", tmp_path / "s.md", declared, training="gpt").read_text()
    scores = {row[0]: float(row[5]) for row in rows(text, "Provider")}
    assert scores["1,000,000,000 parameters"] == pytest.approx(2 * (USAGE_G + MADE_G), rel=5e-3)
    assert scores["1e15 FLOP"] == pytest.approx(2 * (USAGE_G + MADE_G), rel=5e-3)
    (tmp_path / "runs" / "run-2" / "layer.csv").write_text("")
    text = export([tmp_path / "runs"], "sci-ai", tmp_path / "t.md", declared, training="gpt").read_text()
    assert {row[5] for row in rows(text, "Provider")} == {"unknown"}
    assert "no score: run-2 is left out" in text


def test_the_grams_of_a_score_are_those_of_the_bundle(bundle):
    assert impact(read_bundle(bundle), "gwp")["value"] == pytest.approx(USAGE_G)
