"""A session that is one rank of a job, in this process: without torch.distributed there are only files."""

from __future__ import annotations

import time

import pytest

import torchwatt as tw
from torchwatt.core.errors import ConfigError
from torchwatt.distributed import rank_session


@pytest.fixture
def rank(monkeypatch, powercap):
    """Return a function that makes this process a rank of two and profiles a moment."""
    monkeypatch.setenv("TORCHWATT_POWERCAP_ROOT", str(powercap.root))
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "lamp"}.items():
        monkeypatch.setenv(name, value)

    def profiled(number, **options):
        monkeypatch.setattr(rank_session, "_session_counts", {})  # the process of another rank
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("LOCAL_RANK", str(number))
        with tw.profile(layers="off", baseline_s=0.05, **options) as run:
            time.sleep(0.2)
        return run

    return profiled


def test_without_files_asked_for_a_rank_leaves_nothing_and_waits_for_nobody(rank, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    begun = time.monotonic()
    first, second = rank(0), rank(1)
    assert time.monotonic() - begun < 15
    assert list(here.iterdir()) == []
    assert (first.job, second.job) == (None, None)
    assert "cpu:0" in {str(x.domain) for x in first.report.ledgers}
    assert "cpu:0" not in {str(x.domain) for x in second.report.ledgers}
    assert "cpu:0" in {gone.domain for gone in second.report.unavailable}


@pytest.mark.alone  # joules within two percent
def test_ranks_leave_their_parts_and_are_merged_later_once(rank, tmp_path, powercap):
    rank(0, job=tmp_path)
    report = tw.merge(tmp_path).report
    assert (report.status, report.ranks[1].status) == ("partial", "missing")
    rank(1, job=tmp_path)
    report = tw.merge(tmp_path).report
    assert report.status == "complete"
    (package,) = [x for x in report.ledgers if x.domain.kind == "cpu"]
    curve = next(c for c in report.curves if c.domain == package.domain)
    assert package.energy_j == pytest.approx(powercap.energy_j("package-0", curve.start_ns, curve.end_ns), rel=0.02)
    with pytest.raises(ConfigError, match="already has a rank 1"):
        rank(1, job=tmp_path)
    assert (tmp_path / "lamp" / "rank-00001" / "run.csv").is_file()  # the refusal took nothing away


def test_the_environment_names_the_folder_once_for_all(rank, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHWATT_JOB", str(tmp_path / "spool"))
    rank(1)
    assert (tmp_path / "spool" / "lamp" / "rank-00001" / "rank.csv").exists() is False
    assert (tmp_path / "spool" / "lamp" / "rank-00001" / "layer.csv").is_file()
    assert (tmp_path / "spool" / "lamp").stat().st_mode & 0o077 == 0


def test_files_of_a_job_are_rank_0s_to_write(rank, tmp_path):
    rank(1, csv=tmp_path / "audit")
    assert not (tmp_path / "audit").exists()
