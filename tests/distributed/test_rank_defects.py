"""What verify must find in a merged bundle, what validators of others say of it, and what the views show."""

from __future__ import annotations

import pytest

from tests.support.bundles import cell, drop, row_where, tables_of
from tests.support.ranks import lost, record
from torchwatt.audit import verify, write_bundle, write_files
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.rank_records import merge_records
from torchwatt.views import to_html_page, to_payload, to_text


@pytest.fixture(scope="module")
def report():
    return merge_job(merge_records([record(0, 3), record(1, 3, gpu_j=300.0), lost(2, 3)]))


def sealed(report, tables, folder):
    return write_files(tables, folder, run_id=report.run_id)


def plus_one(text):
    return repr(float(text) + 1.0)


DEFECTS = {
    "a rank's joules": (lambda t: cell(t, "rank.csv", 1, "energy_j", plus_one), "SUM rank.csv row 1 column energy_j"),
    "a layer of a rank": (
        lambda t: cell(t, "rank_layer.csv", 2, "energy_self_j", plus_one), "SUM rank_layer.csv column energy_self_j",
    ),
    "a rank left out": (lambda t: drop(t, "rank.csv", 2), "rank 1 has no row"),
    "a missing rank left out": (lambda t: drop(t, "rank.csv", 3), "rank 2 has no row"),
    "a row of a rank left out": (lambda t: drop(t, "rank_layer.csv", 1), "SUM rank.csv row 1"),
    "a rank too many": (lambda t: cell(t, "run.csv", 1, "world_size", "2"), "rank 2 is no rank of the job"),
    "a whole job with a lost rank": (
        lambda t: cell(t, "run.csv", 1, "status", "complete"), "complete, and a rank is not",
    ),
    "a lost rank with joules": (lambda t: cell(t, "rank.csv", 3, "energy_j", "5.0"), "a missing rank has no joules"),
    "joules of nobody given to a rank": (
        lambda t: cell(t, "rank_layer.csv", row_where(t, "rank_layer.csv", device_id="ram"), "fqn", "(no rank)"),
        "(no rank) is nobody's",
    ),
    "better known than the meter": (
        lambda t: cell(t, "rank_layer.csv", row_where(t, "rank_layer.csv", device_id="ram"), "provenance", "measured"),
        "KNOWN rank_layer.csv",
    ),
    "a duration": (
        lambda t: cell(t, "rank.csv", 1, "duration_s", plus_one), "DERIVED rank.csv row 1 column duration_s",
    ),
    "a rank outside of the run": (
        lambda t: cell(t, "rank.csv", 1, "t_end_ns", "99000000000"), "does not lie in the run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(report, tmp_path, name):
    spoil, said = DEFECTS[name]
    tables = tables_of(report)
    spoil(tables)
    found = verify(sealed(report, tables, tmp_path / "audit"))
    assert said in str(found)


def test_a_good_merged_bundle_is_good_and_one_without_its_ranks_is_not(report, tmp_path):
    write_bundle(report, tmp_path / "good")
    assert verify(tmp_path / "good").ok
    (tmp_path / "good" / "rank.csv").unlink()
    assert "rank.csv" in str(verify(tmp_path / "good"))


def test_validators_of_others_take_a_merged_bundle(report, tmp_path):
    frictionless = pytest.importorskip("frictionless")
    folder = write_bundle(report, tmp_path / "audit")
    found = frictionless.Package(str(folder / "datapackage.json")).validate()
    assert found.valid, found.flatten(["type", "note"])


def test_the_views_show_ranks_layers_across_them_and_who_is_missing(report):
    text, page = to_text(report), to_html_page(report)
    assert "ranks: 2 of 3 ranks · imbalance" in text
    assert "missing: left no bundle" in text
    across = next(line.split() for line in text.splitlines() if line.startswith("(communication)  comm"))
    assert across[2:] == ["80.0", "J", "20.0", "J", "60.0", "J", "1.50", "1"]
    assert "Layers across ranks" in page
    assert to_payload(report)["status"] == "partial"  # the front ends go on with what they know


def test_a_report_of_no_job_shows_no_ranks():
    alone = record(0, 1, per_node=1).report
    assert "ranks" not in to_text(alone)
    assert "Layers across ranks" not in to_html_page(alone)


def test_many_ranks_are_shown_by_their_extremes():
    many = merge_job(merge_records([record(rank, 64, per_node=8, gpu_j=100.0 + rank) for rank in range(64)]))
    lines = to_text(many).splitlines()
    assert "... 32 more ranks, in rank.csv" in lines
    assert max(len(line) for line in lines if line.startswith(" ")) <= 140
