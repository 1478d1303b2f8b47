"""Two torchrun agents in two network namespaces, two ranks each: machines that only the job's store connects."""

from __future__ import annotations

import subprocess
from math import fsum

import pytest

import torchwatt as tw
from tests.distributed.launch import FORKED, JOBS, environment, torchrun
from tests.distributed.node import ADDRESSES, two_machines, why_not
from tests.support.heavy import one_of
from tests.support.powercap import FakePowercap
from torchwatt.audit import read_bundle, verify

pytestmark = one_of(JOBS, "two machines")

PORT = "29655"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Run one job on both; each machine has a package of its own and keeps its ranks on its own disk."""
    if why := why_not():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("nodes")
    with (
        two_machines() as names,
        FakePowercap(folder / "powercap-0", {"intel-rapl:0": ("package-0", 40.0)}) as first,
        FakePowercap(folder / "powercap-1", {"intel-rapl:0": ("package-0", 90.0)}) as second,
    ):
        started = [_start(name, node, folder) for node, name in enumerate(names)]
        outputs = [process.communicate(timeout=150)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
        yield folder, (first, second)


def _start(namespace, node, folder):
    options = (
        "--nnodes", "2", "--node-rank", str(node), "--master-addr", ADDRESSES[0], "--master-port", PORT,
        "--rdzv-id", "lamp",
    )  # fmt: skip
    env = environment(
        TORCHWATT_HOST=f"machine-{node}",  # the kernel would say, rightly, that both are one
        TORCHWATT_POWERCAP_ROOT=str(folder / f"powercap-{node}"),
        GLOO_SOCKET_IFNAME="tw0",
    )
    command = torchrun([str(folder / f"disk-{node}"), "1.5", "-1", "-1"], nproc=2, options=options, module=FORKED)
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_parts_of_both_machines_reach_rank_0_over_the_store(jobs):
    folder, _ = jobs
    report = tw.merge(folder / "disk-0" / "lamp.2").report
    assert (report.status, [part.node for part in report.ranks]) == ("complete", [0, 0, 1, 1])
    assert read_bundle(folder / "disk-0" / "merged").run["node_count"] == 2
    found = verify(folder / "disk-0" / "merged")
    assert found.ok, str(found)


def test_each_machines_package_is_counted_once_and_is_true(jobs):
    folder, powercaps = jobs
    report = tw.merge(folder / "disk-0" / "lamp").report
    packages = [x for x in report.ledgers if x.domain.kind == "cpu"]
    assert [str(x.domain) for x in packages] == ["node0/cpu:0", "node1/cpu:0"]
    for ledger, powercap in zip(packages, powercaps, strict=True):
        curve = next(c for c in report.curves if c.domain == ledger.domain)
        true_j = powercap.energy_j("package-0", curve.start_ns, curve.end_ns)
        assert ledger.energy_j == pytest.approx(true_j, rel=0.01)
        ranks = {p.rank for p in report.ranks for e in p.entries if e.domain == ledger.domain}
        assert ranks == {2 * (ledger.domain.node or 0), 2 * (ledger.domain.node or 0) + 1}
    assert fsum(p.energy_j or 0 for p in report.ranks) <= report.energy_j * (1 + 1e-9)


def test_the_offset_of_the_second_machines_clock_is_measured_and_bounded(jobs):
    """Both namespaces share one kernel, so that the true offset is 0: the measured one is off by its bound at most."""
    folder, _ = jobs
    from torchwatt.distributed.rank_facts_file import read_facts

    for block in ("lamp", "lamp.2"):
        looks = read_facts(folder / "disk-0" / block / "rank-00002.json").clock
        assert len(looks) >= 2
        for look in looks:
            assert abs(look.offset_ns) <= look.bound_ns < 20_000_000
    part = tw.merge(folder / "disk-0" / "lamp").report.ranks[
        3
    ]  # of the same machine, which only its first rank looked for
    assert part.clock_method == "store"


def test_without_the_second_disk_the_first_still_has_all_and_the_second_only_its_own(jobs):
    folder, _ = jobs
    alone = tw.merge(folder / "disk-1" / "lamp").report
    assert alone.status == "partial"
    assert [part.status for part in alone.ranks] == ["missing", "missing", "complete", "complete"]
