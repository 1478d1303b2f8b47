"""A run's joules per output token beside the estimate: figures by hand, provenance, texts, errors, no network."""

import os
import socket
import sys
from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest

from tests.support import golden
from tests.support.lazy_module import skip_without
from tests.support.reports import CPU, GPU, RAM, START_NS, bare_report, sample_report
from torchwatt.audit.report_loader import load_report
from torchwatt.carbon.ecologits import TokenEstimator
from torchwatt.core.errors import ConfigError, TorchwattError
from torchwatt.core.requests import TokenRow
from torchwatt.core.trace import ModelSize
from torchwatt.reports.report_result import JobRun

skip_without("ecologits", reason="the estimate is its")

S = 1_000_000_000
SMOLLM2 = ModelSize("LlamaForCausalLM", 134_515_008)


def rows(request, batch, start_s, prefill_s, decode_s, energy_j, tokens=(100, 21)):
    """Return the two rows of one request; a quarter of its joules is prefill's."""
    middle_s, end_s = start_s + prefill_s, start_s + prefill_s + decode_s
    for stage, begin_s, stop_s, share in (("prefill", start_s, middle_s, 0.25), ("decode", middle_s, end_s, 0.75)):
        bounds = (START_NS + int(begin_s * S), START_NS + int(stop_s * S))
        part_j = None if energy_j is None else energy_j * share
        yield TokenRow(request, batch, stage, *tokens, 0, None, None, *bounds, stop_s - begin_s, part_j)


# A first call, and a second one of two sequences: 2 x 20 tokens in 4 s, 160 J.
TOKENS = (
    *rows(0, 0, 0, 1, 2, 400.0),
    *rows(1, 1, 4, 1, 3, 80.0, (100, 20)),
    *rows(2, 1, 4, 1, 3, 80.0, (100, 20)),
)


def report_of(*domains, **changes):
    """The made report with requests of SmolLM2, of some of its domains."""
    report = sample_report(**{"tokens": TOKENS, "models": (SMOLLM2,), **changes})
    kept = domains or (GPU, CPU, RAM)
    return replace(
        report,
        ledgers=tuple(ledger for ledger in report.ledgers if ledger.domain in kept),
        curves=tuple(curve for curve in report.curves if curve.domain in kept),
    )


def compared(*domains, parameters=None, active_parameters=None, **changes):
    run = JobRun(report_of(*domains, **changes))
    return run.against_estimate(parameters=parameters, active_parameters=active_parameters)


def test_the_figures_of_the_run_are_of_the_calls_after_the_first():
    comparison = compared(GPU)
    assert comparison.energy_j == pytest.approx(160 / 40)
    assert comparison.decode_j == pytest.approx(120 / 38)
    assert (comparison.output_tokens, comparison.calls) == (40, "calls after the first")
    assert comparison.load.batch == pytest.approx(2)
    assert comparison.load.tokens_per_s == pytest.approx(20 / 4)
    assert compared(GPU, tokens=TOKENS[:2]).calls == "one call"
    assert compared(GPU, tokens=TOKENS[:2]).energy_j == pytest.approx(400 / 21)


def test_batches_that_overlap_are_requests_at_once():
    later = rows(3, 2, 6, 1, 3, 80.0, (100, 20))  # from 6 to 10 s, the others from 4 to 8 s
    comparison = compared(GPU, tokens=(*TOKENS, *later))
    assert comparison.load.batch == pytest.approx(12 / 6)


def test_devices_and_hosts_are_apart():
    report = report_of()
    by_curve = {curve.domain: curve.between(START_NS + 4 * S, START_NS + 8 * S) for curve in report.curves}
    share = by_curve[GPU] / sum(by_curve.values())
    load = compared().load
    assert load.device_j == pytest.approx(4 * share)
    assert load.host_w == pytest.approx(160 * (1 - share) / 4)
    assert compared(GPU).load.host_w == 0
    assert compared(CPU, RAM).load.device_j == 0


@pytest.mark.parametrize("domains", [(GPU,), (CPU, RAM), (GPU, CPU, RAM)])
def test_all_assumptions_replaced_give_this_run(domains):
    comparison = compared(*domains)
    assert comparison.replaced_j.mean == pytest.approx(comparison.energy_j, rel=1e-9)
    assert comparison.frame.estimate_j.iloc[-1] == pytest.approx(comparison.energy_j, rel=1e-9)


def test_the_largest_change_is_named():
    comparison = compared(CPU, RAM)
    frame = comparison.frame.set_index("assumption")
    estimator = TokenEstimator(SMOLLM2.parameters, SMOLLM2.parameters, "FRA")
    own_j = estimator.estimate().energy_j.mean
    assert frame.estimate_j["(none)"] == own_j
    assert frame.estimate_j["batch"] == estimator.estimate({"batch_size": 2}).energy_j.mean
    assert frame.estimate_j["PUE"] == estimator.estimate({"datacenter_pue": 1}).energy_j.mean
    single = frame.drop(["(none)", "(all)"])
    assert comparison.main_assumption.name == single.log_ratio.abs().idxmax()
    assert single.log_ratio.tolist() == pytest.approx([log(each / own_j) for each in single.estimate_j])
    assert single.ratio.tolist() == pytest.approx([exp(each) for each in single.log_ratio])
    assert comparison.ratio == pytest.approx(4 / own_j)
    assert comparison.explanation in " ".join(repr(comparison).split())


def test_a_decrease_counts_by_its_size():
    comparison = compared(CPU, RAM)
    lower = tuple(each for each in comparison.assumptions if each.log_ratio < 0)
    assert {"hardware", "PUE"} <= {each.name for each in lower}
    largest = min(lower, key=lambda each: each.log_ratio)
    assert replace(comparison, assumptions=lower).main_assumption is largest


def test_a_change_away_from_the_run_explains_nothing():
    towards = compared(CPU, RAM)  # 4 J a token, batch 2: more than the estimate
    assert towards.explanation.startswith("batch explains most of the difference: with 2 instead of 64")
    cheap = tuple(replace(row, energy_j=row.energy_j / 1e3) for row in TOKENS)
    away = compared(CPU, RAM, tokens=cheap)
    assert away.ratio < 1 < exp(away.main_assumption.log_ratio)
    assert "away from this run" in away.explanation
    assert "explains" not in away.explanation


def test_the_title_says_how_the_joules_are_known():
    assert compared(GPU).title == "measured against estimated"
    assert compared(GPU, RAM).title == compared(RAM).title == "modelled against estimated"
    assert "no meter measured all of them" in repr(compared(RAM))
    assert "no meter measured" not in repr(compared(GPU))
    assert repr(compared(RAM)).startswith("modelled against estimated")
    assert "modelled against estimated" in compared(RAM)._repr_html_()


def test_impacts_of_both_are_per_output_token():
    report = report_of()
    comparison = JobRun(report).against_estimate()
    impacts = comparison.impacts.set_index("criterion")
    assert list(impacts.index) == ["energy", "gwp", "adpe", "pe", "wcf"]
    assert comparison.zone == "FRA"
    # The made report has PUE 1.2 and 56.039 g/kWh.
    assert impacts.this_run["gwp"] == pytest.approx(4 / 3.6e6 * 1.2 * 56.039)
    assert impacts.this_run.isna()[["adpe", "pe", "wcf"]].all()
    estimate = TokenEstimator(SMOLLM2.parameters, SMOLLM2.parameters, "FRA").estimate()
    assert impacts.ecologits_lo["energy"] == estimate.energy_j.lo < impacts.ecologits_hi["energy"]
    assert impacts.ecologits_hi["wcf"] == estimate.usage["wcf"].hi
    assert impacts.ecologits_embodied_lo["adpe"] == estimate.embodied["adpe"].lo
    assert impacts.ecologits_embodied_lo.isna()["wcf"]
    metered = report_of(GPU)
    band_j = compared(GPU).band_j
    assert band_j == pytest.approx([4 / metered.energy_j * limit_j for limit_j in metered.systematic_j])
    assert compared(GPU).impacts.this_run_lo[0] == band_j[0]


def test_the_text():
    golden.check(Path(__file__).parent / "golden", "estimate.txt", repr(compared()) + "\n")


def test_the_text_is_narrow_and_its_columns_line_up():
    lines = repr(compared()).splitlines()
    assert max(map(len, lines)) <= 120
    heads = next(line for line in lines if line.strip().startswith("assumption "))
    batch = next(line for line in lines if line.strip().startswith("batch "))
    assert heads.index("EcoLogits") == batch.index("64")


def test_html_is_escaped():
    hostile = replace(SMOLLM2, class_name="<script>alert(1)</script>")
    html = compared(models=(hostile,))._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<table" in html


def test_parameters_that_the_user_gives():
    dense = compared(parameters=7e9)
    assert (dense.parameters, dense.active_parameters, dense.model) == (7_000_000_000, 7_000_000_000, "")
    mixture = compared(parameters=46.7e9, active_parameters=12.9e9, models=())
    assert mixture.estimate == TokenEstimator(46_700_000_000, 12_900_000_000, "FRA").estimate()
    assert "46.7 G parameters, 12.9 G active (given)" in repr(mixture)
    assert compared(active_parameters=1e8).active_parameters == 100_000_000


@pytest.mark.parametrize("given", [0, -1, "7B", True, float("nan"), float("inf"), 1e16])
def test_a_count_that_is_none(given):
    for name in ("parameters", "active_parameters"):
        with pytest.raises(ConfigError, match=f"against_estimate\\({name}="):
            compared(**{name: given})


def test_more_active_parameters_than_there_are():
    with pytest.raises(ConfigError, match="2e\\+09 active parameters of 1e\\+09"):
        compared(parameters=1e9, active_parameters=2e9)


def test_unknown_parameters_name_the_argument(tmp_path):
    for models, why in (((), "no library's generation"), ((SMOLLM2, replace(SMOLLM2, parameters=5)), "2 models")):
        with pytest.raises(ConfigError, match=rf"{why}.*against_estimate\(parameters=") as caught:
            compared(models=models)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"does not state how many a token uses.*active_parameters="):
        compared(models=(ModelSize("Own", 10**9, 9 * 10**8, 8),))
    run = JobRun(report_of())
    loaded = JobRun(load_report(run.to_csv(tmp_path / "bundle")))
    with pytest.raises(ConfigError, match=r"a bundle does not contain the model.*parameters="):
        loaded.against_estimate()
    again, direct = loaded.against_estimate(parameters=1e9), run.against_estimate(parameters=1e9)
    assert again.energy_j == pytest.approx(direct.energy_j)
    assert again.load.batch == pytest.approx(direct.load.batch)
    assert again.load.device_j == pytest.approx(direct.load.device_j, rel=1e-3)


def test_runs_without_a_figure():
    with pytest.raises(ConfigError, match=r"no request in this run: call generate, or run\.add_tokens"):
        compared(tokens=())
    with pytest.raises(ConfigError, match="joules of the requests are unknown"):
        compared(tokens=tuple(rows(0, 0, 0, 1, 2, None)))
    with pytest.raises(ConfigError, match="joules of the requests are unknown"):
        JobRun(bare_report(tokens=tuple(rows(0, 0, 0, 1, 2, None)), models=(SMOLLM2,))).against_estimate()
    for unknown in ({"output_tokens": None}, {"start_ns": None, "end_ns": None}):
        with pytest.raises(ConfigError, match="output tokens or the times"):
            compared(tokens=tuple(replace(row, **unknown) for row in TOKENS))


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ecologits"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ecologits", None)
    with pytest.raises(TorchwattError, match=r"against_estimate.*pip install 'torchwatt\[ecologits\]'") as caught:
        compared()
    assert isinstance(caught.value, ImportError)
    assert len(str(caught.value).splitlines()) == 1


def test_no_network(monkeypatch):
    """Also while the package is imported, of which no module is kept."""

    def refuse(*_arguments, **_options):
        raise AssertionError("a socket was opened")

    for name in [name for name in sys.modules if name.partition(".")[0] == "ecologits"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    with pytest.raises(AssertionError, match="a socket was opened"):
        socket.create_connection(("127.0.0.1", 9))
    comparison = compared()
    assert comparison.estimate.energy_j.lo > 0
    assert repr(comparison)
    assert comparison._repr_html_()
    assert len(comparison.frame)


def test_the_comparison_is_frozen():
    comparison = compared()
    with pytest.raises(AttributeError):
        comparison.energy_j = 1.0
    assert os.linesep not in comparison.title
