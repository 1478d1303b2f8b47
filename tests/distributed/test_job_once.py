"""A job's joules beside those of its ranks' own bundles: counted once, whether the job or only its ranks are kept."""

from dataclasses import replace
from math import fsum

import pytest

from tests.support.ranks import record
from torchwatt.audit import read_bundle, write_bundle
from torchwatt.audit.counted_run import run_of_bundle
from torchwatt.audit.deduplication import count_once
from torchwatt.audit.report_loader import load_report
from torchwatt.core.meter import SamplerStats
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.rank_records import merge_records


def placed(found):
    """Return a rank's record as its process would leave it: its card has a UUID, its machine a name."""
    host, rank = found.facts.host, found.facts.place.rank
    meters = tuple(
        replace(meter, facts=(("uuid", f"GPU-{host}-{meter.domain.index}"),)) if meter.domain.kind == "gpu" else meter
        for meter in found.report.meters
    )
    software = {"machine": host, "process": f"{host}/{rank}/1"}
    return replace(
        found, report=replace(found.report, meters=meters, software=software, sampler=SamplerStats("process"))
    )


@pytest.mark.parametrize("card", [None, 0], ids=["a card each", "one card for all"])
def test_a_job_and_its_ranks_have_the_same_joules(tmp_path, card):
    records = []
    for rank in range(4):
        found = placed(record(rank, 4, per_node=2, gpu=card))
        write_bundle(found.report, tmp_path / f"rank{rank}", samples="csv.gz")
        start = {"start_ns": found.facts.start_ns, "start_unix_ns": found.facts.start_unix_ns}
        records.append(replace(found, report=load_report(tmp_path / f"rank{rank}", **start)))
    job = merge_job(merge_records(records))
    write_bundle(job, tmp_path / "job", samples="csv.gz")
    ranks = [run_of_bundle(read_bundle(tmp_path / f"rank{rank}")) for rank in range(4)]
    whole = run_of_bundle(read_bundle(tmp_path / "job"))
    assert all(device.key and device.machine for run in ranks for device in run.devices)
    keys = {device.key for run in ranks for device in run.devices if device.scope == "device"}
    assert {device.key for device in whole.devices if device.scope == "device"} == keys
    together = count_once([*ranks, whole])
    assert {together[run.name].state for run in ranks} == {"part of a job"}
    assert fsum(share.energy_j for share in together.values()) == pytest.approx(job.energy_j)
    alone = count_once(ranks)
    assert fsum(share.energy_j for share in alone.values()) == pytest.approx(job.energy_j)
