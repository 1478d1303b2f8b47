"""A job is shown, read and written like a run."""

from dataclasses import replace

import pandas as pd
import pytest

from tests.distributed.test_job_folder import left
from tests.support.ranks import lost, record
from torchwatt import merge
from torchwatt.audit import verify
from torchwatt.distributed.job_merge import merge_job as merge_records
from torchwatt.distributed.rank_records import Job
from torchwatt.reports.report_result import ReportResult
from torchwatt.session.run import Run
from torchwatt.views import to_text
from torchwatt.views.layer_sums import TIE_LEGEND
from torchwatt.views.rank_table import compare_ranks


@pytest.fixture
def job(tmp_path):
    return merge(left(tmp_path / "job", [record(0, 3), record(1, 3), lost(2, 3)]))


def test_a_job_is_printed_as_a_sentence_and_a_table_and_not_as_fields(job):
    text = repr(job)
    assert text.splitlines()[0] == to_text(job.report).splitlines()[0]
    assert "ranks: 2 of 3 ranks" in text
    assert "(communication)" in text
    assert "Ledger(" not in text
    assert max(map(len, text.splitlines())) <= 140
    assert len(repr(job.report)) < 200  # nor is the value behind it


def test_a_notebook_gets_the_same_report_as_of_a_run(job):
    html = job._repr_html_()
    assert "Layers across ranks" in html
    assert len(html) < 200_000
    bundle = job._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "application/vnd.torchwatt.report.v1+json"}
    assert set(job._repr_mimebundle_(include=["text/html"])) == {"text/html"}


def test_tables_of_a_job_add_up(job):
    layers = job.layers
    assert layers.energy_self_j.sum() == pytest.approx(job.energy_j, rel=1e-9)
    assert set(layers.fqn) >= {"fc", "(communication)"}
    assert list(job.steps.step) == [0, 1]
    ranks = job.ranks
    assert list(ranks["rank"]) == [0, 1, 2]
    assert list(ranks.status) == ["complete", "complete", "missing"]
    assert pd.isna(ranks.energy_j[2])  # never 0 for unknown
    assert ranks.energy_device_j[:2].sum() + ranks.energy_host_j[:2].sum() == pytest.approx(ranks.energy_j[:2].sum())
    assert (job.status, job.units, job.name) == ("partial", {"image": 16.0}, "made")


def without_package(found):
    """Leave out the package, whose part of a rank has no interval."""
    kept = tuple(ledger for ledger in found.report.ledgers if ledger.domain.kind != "cpu")
    return replace(found, report=replace(found.report, ledgers=kept))


def test_layers_across_ranks_whose_order_cannot_be_told_are_marked(tmp_path):
    records = [without_package(record(rank, 2, ram_j=17.0)) for rank in range(2)]
    job = merge(left(tmp_path / "job", records))
    rows = [(row.name, row.phase, row.tied) for row in compare_ranks(job.report)]
    assert rows == [  # 100, 94 and 40 J, each known to a tenth
        ("fc", "backward", False),
        ("fc", "forward", True),
        ("(communication)", "communication", False),
    ]
    text = repr(job).partition("layers across ranks")[2]
    assert text.count(" ~") == 1
    assert TIE_LEGEND in text
    assert TIE_LEGEND in job._repr_html_().partition("Layers across ranks")[2]


def test_a_job_says_how_many_of_its_steps_were_traced(tmp_path):
    first, second = record(0, 2), record(1, 2)
    first = replace(first, report=replace(first.report, traced_steps=1))
    job = merge_records(Job("made", 2, {0: first, 1: second}, {}))
    assert "1 of 2 steps traced" in to_text(job)


def test_a_job_is_written_as_a_run_is(job, tmp_path):
    assert verify(job.to_csv(tmp_path / "audit")).ok
    assert "Layers across ranks" in job.to_html(tmp_path / "job.html").read_text()
    assert job.keep(tmp_path / "store").is_dir()


def test_a_job_and_a_run_have_one_set_of_faces(job):
    assert isinstance(job, ReportResult)
    assert issubclass(Run, ReportResult)
    for name in ("__repr__", "_repr_html_", "_repr_mimebundle_", "to_csv", "to_html", "keep", "layers", "steps"):
        assert getattr(Run, name) is getattr(type(job), name), name
