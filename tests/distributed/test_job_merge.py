"""Merging ranks: every joule once, whatever the order, and nothing made up for who is missing."""

from dataclasses import replace
from math import fsum
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.ranks import S, lost, record
from torchwatt.audit import verify, write_bundle
from torchwatt.core.errors import BundleError
from torchwatt.core.meter import Event
from torchwatt.core.terms import NO_RANK
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.rank_records import Job, build_job, merge_records

joules = st.floats(0.0, 1e4, allow_nan=False)
seconds = st.floats(0.01, 50.0)


@st.composite
def jobs(draw):
    """Draw up to seven ranks on machines of two, some of which left nothing."""
    size = draw(st.integers(1, 7))
    found = []
    for rank in range(size):
        kinds = {
            "per_node": 2,
            **{name: draw(joules) for name in ("gpu_j", "cpu_j", "ram_j")},
            **{name: draw(seconds) for name in ("cpu_s", "busy_s")},
            "start_s": draw(st.sampled_from([5.0, 6.0, 7.5])),
            "gpu": draw(st.sampled_from([None, 0])),
            "away_s": draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        }
        fate = draw(st.sampled_from(["there", "there", "there", "killed", "gone"])) if rank else "there"
        if fate != "gone":
            found.append(record(rank, size, **kinds) if fate == "there" else lost(rank, size, **kinds))
    return found


def told(report):
    """Return everything that a merged report says, to compare two of them."""
    curves = [(str(c.domain), c.t_ns.tolist(), c.energy_j.tolist()) for c in report.curves]
    return (
        report.run_id, report.status, report.exit_reason, report.start_ns, report.end_ns, report.ledgers, curves,
        report.unavailable, report.events, report.ranks, report.units, report.steps,
    )  # fmt: skip


def test_rows_of_a_job_state_no_work_of_single_ranks(tmp_path):
    def with_work(rank):
        found = record(rank, 2, gpu=0 if rank else None)
        ledgers = [
            replace(ledger, entries=tuple(replace(e, flops=1e9 * (rank + 1), bytes_moved=1e6) for e in ledger.entries))
            for ledger in found.report.ledgers
        ]
        return replace(found, report=replace(found.report, ledgers=tuple(ledgers)))

    report = merge_job(merge_records([with_work(0), with_work(1)]))
    entries = [entry for ledger in report.ledgers for entry in ledger.entries]
    assert entries
    assert all(entry.flops is None and entry.bytes_moved is None for entry in entries)
    assert verify(write_bundle(report, tmp_path / "job")).ok


@examples(15)
@given(jobs(), st.randoms(use_true_random=False))
def test_the_order_and_the_grouping_of_ranks_do_not_matter(records, random: Random):
    first = merge_job(merge_records(records))
    shuffled = list(records)
    random.shuffle(shuffled)
    cut = random.randint(0, len(shuffled))
    halves = [merge_records(part) for part in (shuffled[:cut], shuffled[cut:]) if part]
    total = halves[0]
    for half in halves[1:]:
        total = half + total
    assert told(merge_job(total)) == told(first)


@examples(15)
@given(jobs())
def test_ranks_and_what_is_nobodys_add_up_to_the_meters_and_each_meter_is_counted_once(records):
    report = merge_job(merge_records(records))
    nobody_j = fsum(e.energy_self_j for x in report.ledgers for e in x.entries if e.fqn == NO_RANK)
    ranks_j = fsum(part.energy_j or 0.0 for part in report.ranks)
    assert ranks_j + nobody_j == pytest.approx(report.energy_j, rel=1e-9, abs=1e-9)
    there = [r for r in records if r.report is not None]
    packages = [x.energy_j for r in there for x in r.report.ledgers if x.domain.kind == "cpu"]
    assert sum(x.energy_j for x in report.ledgers if x.domain.kind == "cpu") == pytest.approx(sum(packages))
    devices = {name for r in there for domain, name in r.facts.devices.items() if domain.startswith("gpu")}
    assert sum(x.domain.kind == "gpu" for x in report.ledgers) == len(devices)


@examples(6)
@given(records=jobs())
def test_a_merged_bundle_holds_before_verify(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "audit"
    write_bundle(merge_job(merge_records(records)), folder, samples="csv.gz")
    found = verify(folder)
    assert found.ok, str(found)


def test_a_package_is_given_to_ranks_by_their_cpu_time_and_to_layers_by_where_that_went():
    report = merge_job(merge_records([record(0, 2, cpu_s=2.0, busy_s=10.0, cpu_j=60.0), record(1, 2, cpu_s=6.0)]))
    package = next(x for x in report.ledgers if x.domain.kind == "cpu")
    assert package.energy_j == 60.0  # busy 10 s: 2 s of rank 0, 6 s of rank 1, 2 s of others
    by_rank = [
        {(e.fqn, e.phase): e.energy_self_j for e in part.entries if e.domain.kind == "cpu"} for part in report.ranks
    ]
    assert by_rank[0] == pytest.approx({("fc", "forward"): 9.0, ("fc", "backward"): 3.0})
    assert by_rank[1] == pytest.approx({("fc", "forward"): 27.0, ("fc", "backward"): 9.0})
    nobody = next(e for e in package.entries if e.fqn == NO_RANK)
    assert nobody.energy_self_j == pytest.approx(12.0)
    assert {(e.method, e.provenance) for e in package.entries} == {("time_share", "apportioned")}


def test_ranks_that_used_more_than_the_machine_says_leave_nothing_to_nobody():
    report = merge_job(merge_records([record(0, 2, cpu_s=6.0, busy_s=7.0), record(1, 2, cpu_s=2.0)]))
    package = next(x for x in report.ledgers if x.domain.kind == "cpu")
    assert {e.fqn for e in package.entries} == {"fc"}
    assert sum(e.energy_self_j for e in report.ranks[0].entries if e.domain.kind == "cpu") == pytest.approx(45.0)


def test_a_model_of_the_processs_own_share_is_added_over_ranks():
    report = merge_job(merge_records([record(rank, 4, ram_j=3.0 + rank) for rank in range(4)]))
    assert next(x.energy_j for x in report.ledgers if x.domain.kind == "ram") == pytest.approx(3 + 4 + 5 + 6)
    assert sum(str(x.domain) == "ram" for x in report.ledgers) == 1


def test_two_ranks_on_one_gpu_share_it_and_count_it_once():
    report = merge_job(
        merge_records([record(0, 2, gpu=0, gpu_j=100.0, seconds=4.0), record(1, 2, gpu=0, gpu_j=90.0, seconds=3.0)])
    )
    gpus = [x for x in report.ledgers if x.domain.kind == "gpu"]
    assert [(str(x.domain), x.energy_j) for x in gpus] == [("gpu:0", 100.0)]
    shares = [sum(e.energy_self_j for e in part.entries if e.domain.kind == "gpu") for part in report.ranks]
    assert shares == pytest.approx([100 * 4 / 7, 100 * 3 / 7])


def test_two_launchers_on_one_machine_do_not_count_its_package_twice():
    records = [record(rank, 2, per_node=1) for rank in range(2)]
    same = [replace(r, facts=replace(r.facts, host="one machine")) for r in records]
    report = merge_job(merge_records(same))
    assert [str(x.domain) for x in report.ledgers if x.domain.kind == "cpu"] == ["cpu:0"]


def test_machines_have_names_of_their_own_and_each_its_package():
    report = merge_job(merge_records([record(rank, 4, per_node=2, offset_ns=7 * S * (rank // 2)) for rank in range(4)]))
    names = [str(x.domain) for x in report.ledgers]
    assert names == [
        "node0/cpu:0", "node0/gpu:0", "node0/gpu:1", "node0/ram",
        "node1/cpu:0", "node1/gpu:0", "node1/gpu:1", "node1/ram",
    ]  # fmt: skip
    assert {(p.start_ns, p.clock_method, p.clock_bound_ns) for p in report.ranks[2:]} == {(5 * S, "store", 150_000)}
    assert report.duration_s == 4.0


def test_a_clock_that_nobody_measured_is_placed_by_wall_time_and_said():
    far = record(1, 2, per_node=1, offset_ns=7 * S)
    report = merge_job(merge_records([record(0, 2, per_node=1), replace(far, facts=replace(far.facts, clock=()))]))
    assert (report.ranks[1].clock_method, report.ranks[1].clock_bound_ns) == ("wall_clock", None)
    assert report.ranks[1].start_ns == 5 * S
    assert "CLOCK_UNMEASURED" in {event.code for event in report.events}


def test_a_lost_rank_makes_the_job_partial_and_is_named_everywhere():
    report = merge_job(merge_records([record(0, 3), lost(1, 3, "left no bundle: it was killed")]))
    assert report.status == "partial"
    assert "rank 1 missing (left no bundle: it was killed)" in report.exit_reason
    assert "rank 2 missing (left nothing)" in report.exit_reason
    assert [part.energy_j is None for part in report.ranks] == [False, True, True]
    assert {gone.domain for gone in report.unavailable} == {"rank:1", "rank:2"}
    assert sum(event.code == "RANK_MISSING" for event in report.events) == 2


def test_a_machine_whose_first_rank_is_lost_has_no_package_and_says_why():
    report = merge_job(merge_records([lost(0, 2), record(1, 2)]))
    assert [str(x.domain) for x in report.ledgers] == ["gpu:1", "ram"]
    assert {gone.domain: gone.reason for gone in report.unavailable}["cpu:0"].startswith("the machine's first rank")


def test_a_late_rank_is_said():
    report = merge_job(merge_records([record(0, 2), record(1, 2, start_s=10.0)]))
    late = [event for event in report.events if event.code == "RANK_LATE"]
    assert [(event.subject, event.t_ns) for event in late] == [("rank:1", 10 * S)]
    assert report.duration_s == 9.0


def test_what_all_ranks_say_alike_is_said_once():
    report = merge_job(merge_records([record(rank, 3) for rank in range(3)]))
    assert [e.message for e in report.events if e.code == "SAID"] == ["the same on every rank (all ranks)"]


def test_units_are_added_and_what_one_rank_left_to_another_is_not_missing():
    report = merge_job(merge_records([record(rank, 2) for rank in range(2)]))
    assert report.units == {"image": 16.0}
    assert report.unavailable == ()


def test_the_same_rank_twice_and_ranks_of_two_jobs_are_refused():
    with pytest.raises(BundleError, match="rank 1 occurs twice"):
        merge_records([record(0, 2), record(1, 2), record(1, 2)])
    with pytest.raises(BundleError, match="ranks of two jobs"):
        build_job(record(0, 2)) + build_job(record(1, 2, job="other"))
    with pytest.raises(BundleError, match="ranks of two jobs"):
        build_job(record(0, 2)) + build_job(record(1, 3))
    with pytest.raises(BundleError, match="no rank wrote a report"):
        merge_job(Job("made", 2, {}, {0: "left nothing"}))


def _with_event(item, subject, message="a gap"):
    event = Event(item.report.start_ns, "warning", "SAMPLE_GAP", subject, message)
    return replace(item, report=replace(item.report, events=(event,)))


def test_an_event_is_about_the_jobs_device_and_not_about_the_ranks_name_of_it():
    """Both machines have a `cpu:0`; the second rank of each sees its own GPU as gpu:0, which NVML numbers 1."""
    subjects = ["cpu:0", "gpu:0", "gpu:0/energy", "run", "gpu:7"]
    for subject in subjects:
        ranks = [record(0, 4, per_node=2), record(1, 4, per_node=2, gpu=0), record(2, 4, per_node=2), lost(3, 4)]
        ranks[1] = replace(ranks[1], facts=replace(ranks[1].facts, devices={"gpu:0": "uuid-0-1"}, numbers={"gpu:0": 1}))
        events = merge_job(merge_records([_with_event(r, subject) if r.report else r for r in ranks])).events
        gaps = {(e.subject, e.message) for e in events if e.code == "SAMPLE_GAP"}
        assert gaps == {
            "cpu:0": {("node0/cpu:0", "a gap (rank 0, 1)"), ("node1/cpu:0", "a gap (rank 2)")},
            "gpu:0": {
                ("node0/gpu:0", "a gap (rank 0)"), ("node0/gpu:1", "a gap (rank 1)"), ("node1/gpu:0", "a gap (rank 2)"),
            },
            "gpu:0/energy": {
                ("node0/gpu:0/energy", "a gap (rank 0)"), ("node0/gpu:1/energy", "a gap (rank 1)"),
                ("node1/gpu:0/energy", "a gap (rank 2)"),
            },
            "run": {("run", "a gap (rank 0, 1, 2)")},
            "gpu:7": {("node0/gpu:7", "a gap (rank 0, 1)"), ("node1/gpu:7", "a gap (rank 2)")},
        }[subject]  # fmt: skip


def test_the_events_of_one_machine_keep_the_names_of_its_devices():
    ranks = [_with_event(record(rank, 2), "cpu:0") for rank in range(2)]
    assert ("cpu:0", "a gap (all ranks)") in {(e.subject, e.message) for e in merge_job(merge_records(ranks)).events}


def test_a_bundle_of_two_machines_with_events_about_their_devices_holds_before_verify(tmp_path):
    ranks = [_with_event(record(rank, 2, per_node=1), "cpu:0") for rank in range(2)]
    write_bundle(merge_job(merge_records(ranks)), tmp_path / "audit", samples="csv.gz")
    found = verify(tmp_path / "audit")
    assert found.ok, str(found)
