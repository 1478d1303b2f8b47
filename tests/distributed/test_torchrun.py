"""Real ranks under torchrun, a simulated GPU each and one package for all: four in a job that ends well, two else."""

from __future__ import annotations

import json
from math import fsum

import pytest

import torchwatt as tw
from tests.distributed.launch import JOBS, launch
from tests.support.heavy import one_of
from tests.support.powercap import FakePowercap
from torchwatt.audit import read_bundle, verify
from torchwatt.core.terms import NO_RANK
from torchwatt.views import to_html_page, to_text

pytestmark = pytest.mark.simhw

RANKS = 4


@pytest.fixture(scope="module")
def powercap(tmp_path_factory):
    with FakePowercap(tmp_path_factory.mktemp("powercap") / "tree") as fake:
        yield fake


@pytest.fixture(scope="module")
def whole(nvml_simulator, powercap, tmp_path_factory):
    """A job that ends well: DDP, then FSDP with rank 2 late."""
    found = launch(powercap, tmp_path_factory.mktemp("whole") / "spool", ["1.5", "2", "-1"], forked=True)
    assert found.code == 0, found.output
    return found


@pytest.fixture(scope="module")
def killed(nvml_simulator, powercap, tmp_path_factory):
    """A job of which rank 1 gets SIGKILL in the middle; torchrun then ends the others."""
    found = launch(powercap, tmp_path_factory.mktemp("killed") / "spool", ["2.4", "-1", "1"], ranks=2)
    assert found.code != 0
    return found


def gpus(report):
    return [x for x in report.ledgers if x.domain.kind == "gpu"]


def curve_of(report, ledger):
    return next(c for c in report.curves if c.domain == ledger.domain)


@pytest.mark.parametrize("block", ["job", "job.2"], ids=["ddp", "fsdp"])
def test_the_sum_over_ranks_is_what_the_devices_really_drew(whole, block):
    report = tw.merge(whole.folder / block).report
    assert (report.status, len(report.ranks)) == ("complete", RANKS)
    assert [str(x.domain) for x in gpus(report)] == [f"gpu:{n}" for n in range(RANKS)]
    true_j = fsum(whole.gpu_j(report, curve_of(report, ledger)) for ledger in gpus(report))
    ranks_j = fsum(e.energy_self_j for part in report.ranks for e in part.entries if e.domain.kind == "gpu")
    assert ranks_j == pytest.approx(true_j, rel=0.01)
    for part in report.ranks:  # and each GPU is its rank's
        assert {str(e.domain) for e in part.entries if e.domain.kind == "gpu"} == {f"gpu:{part.rank}"}


@pytest.mark.parametrize("block", ["job", "job.2"], ids=["ddp", "fsdp"])
def test_the_machines_package_and_memory_are_counted_once(whole, block):
    report = tw.merge(whole.folder / block).report
    for domain, zone in (("cpu:0", "package-0"), ("dram:0", "dram")):
        (ledger,) = [x for x in report.ledgers if x.domain.kind == domain.partition(":")[0]]
        assert str(ledger.domain) == domain
        assert ledger.energy_j == pytest.approx(whole.package_j(zone, curve_of(report, ledger)), rel=0.01)
        shares = [fsum(e.energy_self_j for e in p.entries if e.domain == ledger.domain) for p in report.ranks]
        nobody = fsum(e.energy_self_j for e in ledger.entries if e.fqn == NO_RANK)
        assert all(share > 0 for share in shares)
        assert fsum(shares) + nobody == pytest.approx(ledger.energy_j, rel=1e-9)
        assert {e.provenance for e in ledger.entries} == {"apportioned"}
    names = {e.fqn for part in report.ranks for e in part.entries if e.domain.kind == "cpu"}
    assert {"0", "2", "(optimizer)"} <= names  # each rank's part is cut into its own layers


def test_a_gpu_of_no_rank_is_metered_once_and_stays_outside_of_the_total(whole):
    bundle = read_bundle(whole.folder / "merged")
    device = {row["device_id"]: row for row in bundle["device"]}
    assert device["gpu:4"]["counted"] is False
    assert device["gpu:4"]["energy_j"] > 0
    assert "DEVICE_OF_NO_RANK" in {row["code"] for row in bundle["event"]}


def test_what_was_merged_over_the_store_is_what_the_files_give_and_verify_accepts_it(whole, tmp_path):
    report = tw.merge(whole.folder / "job.2").report
    merged = read_bundle(whole.folder / "merged")
    assert merged.run["run_id"] == report.run_id
    assert merged.run["energy_it_j"] == report.energy_j
    assert (merged.run["world_size"], merged.run["node_count"], merged.run["job_id"]) == (RANKS, 1, "job.2")
    found = verify(whole.folder / "merged")
    assert found.ok, str(found)
    for rank in range(RANKS):
        assert verify(whole.folder / "job" / f"rank-{rank:05d}").ok
    assert not list((whole.folder / "job").glob("*.journal"))  # their bundles hold all of it


def test_a_late_rank_shows_in_the_skew_and_in_the_layers_across_ranks(whole):
    report = tw.merge(whole.folder / "job.2").report
    told = [json.loads(line) for line in whole.output.splitlines() if line.startswith('{"rank"')]
    begun_ns = {found["rank"]: found["begun_ns"] for found in told}  # by each rank's own clock, which is the machine's
    for part in report.ranks:
        late_s = (part.start_ns - report.ranks[0].start_ns) / 1e9
        assert late_s == pytest.approx((begun_ns[part.rank] - begun_ns[0]) / 1e9, abs=1.0)
    assert "rank:2" in {e.subject for e in report.events if e.code == "RANK_LATE"}
    text = to_text(report)
    assert "ranks: 4 of 4 ranks" in text
    assert "layers across ranks" in text
    assert "(communication)" in text  # the barrier at the end of the block
    assert "Layers across ranks" in to_html_page(report)


def test_units_of_all_ranks_are_added(whole):
    report = tw.merge(whole.folder / "job").report
    assert report.units == {"image": RANKS * 75 * 32.0}
    assert {part.step_count for part in report.ranks} == {75}


@one_of(JOBS, "a killed rank")
def test_a_killed_rank_leaves_a_partial_and_honest_report(killed, tmp_path):
    report = tw.merge(killed.folder).report
    assert report.status == "partial"
    assert "partial (killed" in report.exit_reason
    assert report.ranks[1].status == "partial"
    assert "RECOVERED" in {event.code for event in report.events}
    # What is there is true: every GPU over what is known of it, and the books balance.
    for ledger in gpus(report):
        assert ledger.energy_j == pytest.approx(killed.gpu_j(report, curve_of(report, ledger)), rel=0.01)
    tw_csv = tmp_path / "audit"
    from torchwatt.reports.output_files import write_csv

    write_csv(report, tw_csv)
    found = verify(tw_csv)
    assert found.ok, str(found)


@one_of(JOBS, "a killed rank")
def test_a_rank_that_left_nothing_but_its_name_is_missing_and_its_gpu_is_not_made_up(killed, tmp_path):
    import shutil

    copy = tmp_path / "job"
    shutil.copytree(killed.folder / "job", copy)
    shutil.rmtree(copy / "rank-00001.journal")
    report = tw.merge(copy).report
    assert [part.status for part in report.ranks].count("missing") == 1
    assert report.ranks[1].energy_j is None
    assert "gpu:1" not in {str(x.domain) for x in report.ledgers}
    assert "rank 1 missing (left no bundle and no journal" in report.exit_reason
