"""The form of the EU AI Act over all runs of a training."""

import re
from dataclasses import replace

import pytest

from tests.audit.exports import golden
from tests.distributed.test_job_once import placed
from tests.support.ranks import lost, record
from tests.support.reports import another_report, bare_report, named_report, sample_report
from torchwatt.audit import write_bundle
from torchwatt.audit.exports import export
from torchwatt.audit.exports.training_runs import TrainingTotals, find_training
from torchwatt.core.errors import BundleError
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.rank_records import merge_records

RUN_J = 7402.148
DAY_S = 86_400


def run(number, **changes):
    """Build a run of the training `gpt`, some hours after the one before."""
    return another_report(number, **{"name": "gpt", **changes})


def row(text, label):
    return re.search(rf"^\| {re.escape(label)} \| (.*) \|$", text, re.MULTILINE)[1]


@pytest.fixture
def runs(tmp_path):
    """Write four runs of the training, by name, parent and project, and two of others."""
    folder = tmp_path / "runs"
    for report, project in (
        (run(1), "p"),
        (run(2, status="aborted", exit_reason="KeyboardInterrupt"), "p"),
        (run(3, name="retry", status="partial", exit_reason="killed", declared={"parent_run_id": "run-1"}), "p"),
        (run(4, name="other"), "gpt"),
        (run(5, name="other"), "q"),
        (run(6, name="gpt 2"), "q"),
    ):
        write_bundle(report, folder / project / report.run_id)
    return folder


def form(runs, tmp_path, declared=None, name="gpt"):
    return export([runs], "ai-act", tmp_path / "form.md", declared, training=name).read_text()


def test_all_runs_of_a_training_are_added_whatever_their_end(runs, tmp_path):
    text = form(runs, tmp_path, {"flops_total": "5e22", "model_id": "gpt", "organisation": "ACME"})
    golden.check("ai_act_training.md", text)
    said = row(text, "Energy (MWh)")
    assert float(said) == pytest.approx(4 * RUN_J / 3.6e9, rel=5e-3)
    assert len(said.replace(".", "").lstrip("0")) >= 2
    assert row(text, "Runs") == "4: 1 aborted, 2 complete, 1 partial"
    assert row(text, "Measured or estimated") == "estimated (97.0% of the joules are measured, the rest modelled)"
    assert float(row(text, "Computation (FLOP)")) == 5e22  # that of the training, not of each run
    assert float(row(text, "Wall-clock days with a run under way")) == pytest.approx(4 * 24 / DAY_S, rel=5e-3)
    assert row(text, "Hardware-days").endswith(" NVIDIA H200-days")
    assert "inside: cpu, gpu, ram" in row(text, "Boundary (the form names none)")
    assert 80 <= len(text.split("**Method.**")[1].split("**Missing")[0].split()) <= 130


def test_energy_has_two_figures_also_where_they_are_zeros():
    from torchwatt.audit.exports.training_runs import _figure

    assert [_figure(mwh) for mwh in (2.0, 0.001, 100.0, 1234.5, None)] == ["2.00", "0.00100", "100", "1230", "N/A"]


def test_operations_are_added_or_not_known(runs, tmp_path):
    assert row(form(runs, tmp_path), "Computation (FLOP)") == "N/A"
    for number in (1, 2):
        report = run(number, name="counted", declared={"flops_total": 1e18 * number, "flops_provenance": "derived"})
        write_bundle(report, tmp_path / "counted" / report.run_id)
    totals = TrainingTotals(find_training([tmp_path / "counted"], "counted"))
    assert totals.flops == pytest.approx(3e18)
    with pytest.raises(BundleError, match=r"flops_total is .* cannot be declared again"):
        export([tmp_path / "counted"], "ai-act", tmp_path / "x", {"flops_total": "1"}, training="counted")


def test_a_merged_job_is_not_counted_again_with_its_ranks(tmp_path):
    records = [placed(record(rank, 2)) for rank in range(2)]
    job = merge_job(merge_records(records))
    write_bundle(job, tmp_path / "runs" / "job", samples="csv.gz")
    alone = TrainingTotals(find_training([tmp_path / "runs"], "made"))
    for item in records:  # a rank's own bundle: joules that would be seen in the sum
        rank = sample_report(run_id=item.facts.run_id, name="made")
        write_bundle(rank, tmp_path / "runs" / f"rank-{item.facts.place.rank}")
    together = TrainingTotals(find_training([tmp_path / "runs"], "made"))
    assert len(together.counted) == 3
    assert together.energy_j == alone.energy_j == pytest.approx(job.energy_j)
    assert together.hardware_days() == alone.hardware_days()
    assert sum(together.hardware_days().values()) == pytest.approx(2 * 4.0 / DAY_S)  # two cards for four seconds
    assert "| part of a job |" in form(tmp_path / "runs", tmp_path, name="made")


def test_a_process_that_left_nothing_is_missing_from_the_total(tmp_path):
    job = merge_job(merge_records([placed(record(0, 2)), lost(1, 2)]))
    write_bundle(job, tmp_path / "runs" / "job", samples="csv.gz")
    text = form(tmp_path / "runs", tmp_path, name="made")
    assert row(text, "Energy (MWh)") == "N/A"
    assert "energy: 1 processes of merged jobs left nothing to count" in text


def test_a_bundle_that_fails_verify_is_listed_and_the_total_is_not_known(runs, tmp_path):
    device = runs / "p" / "run-2" / "device.csv"
    device.write_text(device.read_text().replace("measured", "modelled", 1))
    text = form(runs, tmp_path)
    assert row(text, "Energy (MWh)") == "N/A"
    label = "Energy of the 3 runs that are known (MWh), not a total"
    assert float(row(text, label)) == pytest.approx(3 * RUN_J / 3.6e9, rel=5e-3)
    assert re.search(r"^\| run-2 \| fails verify: .* \| yes \|$", text, re.MULTILINE)
    assert "energy: 1 bundles are left out" in text


def test_a_bundle_of_another_training_that_fails_is_listed_and_changes_nothing(runs, tmp_path):
    (runs / "q" / "run-5" / "sample.parquet").write_bytes(b"")
    text = form(runs, tmp_path)
    assert float(row(text, "Energy (MWh)")) == pytest.approx(4 * RUN_J / 3.6e9, rel=5e-3)
    assert re.search(r"^\| run-5 \| .* \| no, by its name \|$", text, re.MULTILINE)


@pytest.mark.parametrize("missing", ["run.csv", "MANIFEST.sha256", "layer.csv"])
def test_a_bundle_without_one_of_its_files_is_listed(missing, runs, tmp_path):
    (runs / "p" / "run-2" / missing).unlink()
    text = form(runs, tmp_path)
    assert row(text, "Energy (MWh)") == "N/A"
    assert re.search(r"^\| run-2 \| .* \| yes \|$", text, re.MULTILINE)


def test_a_run_that_has_not_ended_is_listed(runs, tmp_path):
    write_bundle(run(7, status="running"), runs / "p" / "run-7")
    text = form(runs, tmp_path)
    assert row(text, "Energy (MWh)") == "N/A"
    assert re.search(r"^\| run-7 \| run run-7 had not ended \| yes \|$", text, re.MULTILINE)


def test_runs_without_a_meter_or_with_another_boundary_have_no_sum(runs, tmp_path):
    write_bundle(bare_report(run_id="run-8", name="gpt"), runs / "p" / "run-8")
    assert "energy: nothing was metered in 1 of 5 runs" in form(runs, tmp_path)
    for report in (run(9, name="narrow"), replace(named_report("fc"), name="narrow")):
        write_bundle(report, tmp_path / "n" / report.run_id)
    totals = TrainingTotals(find_training([tmp_path / "n"], "narrow"))
    assert totals.energy_j is None
    assert list(totals.why_unknown()) == ["the runs have different boundaries: cpu, gpu, ram; gpu"]


def test_a_card_that_two_runs_share_has_its_days_once(tmp_path):
    for number in (1, 2):
        report = run(1, run_id=f"run-{number}", name="pair")
        write_bundle(report, tmp_path / "runs" / report.run_id)
    totals = TrainingTotals(find_training([tmp_path / "runs"], "pair"))
    assert totals.energy_j == pytest.approx(RUN_J)
    assert sum(totals.hardware_days().values()) == pytest.approx(24 / DAY_S)


def test_what_cannot_be_asked_is_refused(runs, tmp_path):
    for bad, complaint in (
        ({"name": "none"}, "no run of training 'none'"),
        ({"to": "codecarbon"}, "codecarbon has no form about a training; --training is for sci-ai, ai-act"),
        ({"declared": {"energy_it_j": "1"}}, "cannot be declared"),
    ):
        asked = {"to": "ai-act", "declared": {}, "name": "gpt", **bad}
        with pytest.raises(BundleError, match=complaint):
            export([runs], asked["to"], tmp_path / "x", asked["declared"], training=asked["name"])
