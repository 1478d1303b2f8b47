"""Superchips in a job: what every rank calls `module:0` is counted once for each module that there is."""

from dataclasses import replace
from math import fsum

import pytest

from tests.support.ranks import curve, ledger, meter, record
from torchwatt.attribution.counter_scope import MODULE_GPUS_FACT
from torchwatt.core.meter import Recording
from torchwatt.core.terms import Domain
from torchwatt.core.trace import EMPTY_TRACE
from torchwatt.distributed.job_folder import final_facts
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.rank_records import Job

MODULE = Domain("module", 0)


def on_a_superchip(rank, module_j, beside):
    """Return what a rank leaves whose GPU and RAM are parts of a module next to some CPUs."""
    made = record(rank, 2, gpu=0 if rank == 0 else 1)
    report, own = made.report, made.facts.own[0]
    parts = tuple(
        replace(one, counted=False, part_of="module:0") if str(one.domain) in {own, "ram"} else one
        for one in report.ledgers
        if one.domain.kind != "cpu"
    )
    facts = (("cpu_affinity", beside), (MODULE_GPUS_FACT, own))
    whole = ledger(MODULE, {("fc", "forward"): 0.6 * module_j, ("(idle)", "other"): 0.4 * module_j}, 4.0)
    report = replace(
        report,
        ledgers=(*parts, whole),
        curves=(*report.curves, curve(MODULE, module_j, report.start_ns, report.end_ns)),
        meters=(*report.meters, replace(meter(MODULE), facts=facts)),
    )
    told = final_facts(made.facts, report, Recording((), ()), EMPTY_TRACE)
    return replace(made, facts=replace(told, cpu=made.facts.cpu, host_shares=made.facts.host_shares), report=report)


def merged(*records):
    return merge_job(Job("made", len(records), dict(enumerate(records)), {}))


def test_two_modules_of_one_machine_are_two_and_each_gpu_says_on_which_it_is():
    report = merged(on_a_superchip(0, 400.0, "ff"), on_a_superchip(1, 300.0, "ff00"))
    assert [str(one.domain) for one in report.counted] == ["module:0", "module:1"]
    assert report.energy_j == pytest.approx(700.0)
    homes = {str(one.domain): one.part_of for one in report.ledgers if one.domain.kind == "gpu"}
    assert homes == {"gpu:0": "module:0", "gpu:1": "module:1"}
    assert fsum(part.energy_j for part in report.ranks) == pytest.approx(700.0)


def test_two_ranks_on_one_module_share_its_joules():
    report = merged(on_a_superchip(0, 500.0, "ff"), on_a_superchip(1, 500.0, "ff"))
    assert [str(one.domain) for one in report.counted] == ["module:0"]
    assert report.energy_j == pytest.approx(500.0)
    assert fsum(part.energy_j for part in report.ranks) == pytest.approx(500.0)
