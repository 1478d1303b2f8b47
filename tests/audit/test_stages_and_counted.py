"""What version 2 added: stages in the key, domains that are not counted, intervals of two kinds."""

from dataclasses import replace
from math import fsum

import pytest

from tests.support.bundles import rich_report
from torchwatt.audit import read_bundle, verify, write_bundle
from torchwatt.audit.report_loader import load_report
from torchwatt.core.errors import BundleError
from torchwatt.core.terms import OTHER_PROCESSES
from torchwatt.reports.dataframes import layer_frame, step_frame


def staged():
    """Return a report in which one row is cut into two stages."""
    report = rich_report()
    gpu, *others = report.ledgers
    first, *rest = gpu.entries
    half = {
        name: getattr(first, name) / 2
        for name in (
            "energy_self_j", "energy_self_lo_j", "energy_self_hi_j", "energy_static_j", "energy_dynamic_j",
            "energy_systematic_lo_j", "energy_systematic_hi_j",
        )
    }  # fmt: skip
    parts = tuple(replace(first, stage=stage, **half) for stage in ("prefill", "decode"))
    return replace(report, ledgers=(replace(gpu, entries=(*parts, *rest)), *others))


def test_rows_of_two_stages_are_two_rows_everywhere(tmp_path):
    report = staged()
    bundle = write_bundle(report, tmp_path / "audit")
    assert verify(bundle).ok, verify(bundle)
    mine = [row for row in read_bundle(bundle)["layer"] if row["stage"] is not None]
    assert [row["stage"] for row in mine] == ["decode", "prefill"]
    frame = layer_frame(report)
    assert sorted(frame[frame.stage != ""].stage) == ["decode", "prefill"]
    again = load_report(bundle)
    assert {e.stage for x in again.ledgers for e in x.entries} == {"", "prefill", "decode"}
    assert [x.energy_lo_j for x in again.ledgers] == pytest.approx([x.energy_lo_j for x in sorted_(report)])


def sorted_(report):
    return sorted(report.ledgers, key=lambda ledger: str(ledger.domain))


def test_two_rows_of_one_stage_are_refused(tmp_path):
    report = staged()
    gpu = report.ledgers[0]
    twins = tuple(replace(entry, stage="") for entry in gpu.entries)
    with pytest.raises(BundleError, match="two rows for"):
        write_bundle(replace(report, ledgers=(replace(gpu, entries=twins), *report.ledgers[1:])), tmp_path / "audit")


def test_steps_keep_their_stage(tmp_path):
    report = rich_report()
    bundle = write_bundle(report, tmp_path / "audit")
    windows = [row for row in read_bundle(bundle)["window"] if row["kind"] == "step"]
    assert [row["stage"] for row in windows] == [step.stage for step in report.steps]
    assert all(row["energy_systematic_lo_j"] < row["energy_j"] < row["energy_systematic_hi_j"] for row in windows)
    assert list(step_frame(report).stage) == [step.stage for step in report.steps]
    assert [step.stage for step in load_report(bundle).steps] == [step.stage for step in report.steps]


def test_a_domain_that_is_not_counted_stays_with_books_of_its_own(tmp_path):
    report = rich_report()
    gpu, *others = report.ledgers
    whole = replace(gpu.entries[0], fqn=OTHER_PROCESSES, phase="other", energy_self_j=gpu.energy_j, calls=0)
    whole = replace(whole, energy_self_hi_j=1.1 * gpu.energy_j, energy_systematic_hi_j=1.1 * gpu.energy_j)
    whole = replace(whole, energy_static_j=None, energy_dynamic_j=None)
    theirs = replace(gpu, counted=False, entries=(whole,))
    # The report's windows hold joules of the card; those of a run hold what is counted.
    apart = replace(report, ledgers=(theirs, *others), impacts=(), factors=(), windows=())
    bundle = write_bundle(apart, tmp_path / "audit")
    assert verify(bundle).ok, verify(bundle)
    read = read_bundle(bundle)
    device = next(row for row in read["device"] if row["device_id"] == "gpu:0")
    assert device["counted"] is False
    assert read.run["energy_it_j"] == pytest.approx(report.energy_j - gpu.energy_j)
    assert "gpu:0" not in read.run["boundary"]
    own = fsum(row["energy_self_j"] for row in read["layer"] if row["device_id"] == "gpu:0")
    assert own == pytest.approx(device["energy_j"], rel=1e-9)
    assert [x.counted for x in load_report(bundle).ledgers] == [True, False, True]  # cpu:0, gpu:0, ram
    assert load_report(bundle).energy_j == pytest.approx(apart.energy_j)


def test_both_kinds_of_intervals_are_in_the_files(tmp_path):
    report = rich_report()
    run = read_bundle(write_bundle(report, tmp_path / "audit")).run
    assert (run["energy_it_lo_j"], run["energy_it_hi_j"]) == pytest.approx(report.interval_j)
    assert (run["energy_it_systematic_lo_j"], run["energy_it_systematic_hi_j"]) == pytest.approx(report.systematic_j)
    assert run["energy_it_u_j"] * 1.6448536269514722 == pytest.approx(run["energy_it_hi_j"] - run["energy_it_j"])
    assert run["traced_step_count"] == report.traced_steps
