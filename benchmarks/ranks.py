"""Four ranks under torchrun against the truth of simulated meters: DDP, FSDP with a late rank, and a killed rank.

PYTHONPATH=src:. python benchmarks/ranks.py [--seconds 4]
"""

from __future__ import annotations

import argparse
import tempfile
from math import fsum
from pathlib import Path

from tests.distributed.launch import Launched, launch
from tests.support.powercap import FakePowercap

import torchwatt as tw
from torchwatt.audit import verify
from torchwatt.core.report import Report
from torchwatt.core.terms import NO_RANK
from torchwatt.reports.output_files import write_csv


def told(name: str, found: Launched, report: Report, folder: Path) -> None:
    """Print one block's joules beside the truth."""
    curves = {str(curve.domain): curve for curve in report.curves}
    print(f"\n{name}: {report.status}{f' · {report.exit_reason}' if report.exit_reason else ''}")
    gpus = [ledger for ledger in report.ledgers if ledger.domain.kind == "gpu"]
    true_j = {str(x.domain): found.gpu_j(report, curves[str(x.domain)]) for x in gpus}
    for ledger in gpus:
        exact = true_j[str(ledger.domain)]
        print(f"  {ledger.domain}: {ledger.energy_j:9.2f} J, truth {exact:9.2f} J, {ledger.energy_j / exact - 1:+.3%}")
    ranks_j = fsum(e.energy_self_j for p in report.ranks for e in p.entries if e.domain.kind == "gpu")
    total_j = fsum(true_j.values())
    print(f"  sum over ranks {ranks_j:.2f} J, truth of the devices {total_j:.2f} J, {ranks_j / total_j - 1:+.3%}")
    for kind, zone in (("cpu", "package-0"), ("dram", "dram")):
        for ledger in (x for x in report.ledgers if x.domain.kind == kind):
            exact = found.package_j(zone, curves[str(ledger.domain)])
            parts = [fsum(e.energy_self_j for e in p.entries if e.domain == ledger.domain) for p in report.ranks]
            nobody = fsum(e.energy_self_j for e in ledger.entries if e.fqn == NO_RANK)
            shares = " + ".join(f"{part:.2f}" for part in parts)
            off = f"{ledger.energy_j / exact - 1:+.3%}"
            print(f"  {ledger.domain}: {ledger.energy_j:.2f} J once, truth {exact:.2f} J, {off}")
            print(f"    = ranks {shares} + (no rank) {nobody:.2f}")
    write_csv(report, folder)
    print(f"  verify: {str(verify(folder)).splitlines()[-1].partition(':')[0]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", default="4", help="how long each block trains")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, FakePowercap(Path(name) / "powercap") as powercap:
        folder = Path(name)
        whole = launch(powercap, folder / "whole", [asked.seconds, "2", "-1"])
        for block, label in (("job", "DDP"), ("job.2", "FSDP, rank 2 late")):
            told(label, whole, tw.merge(whole.folder / block).report, folder / f"audit-{block}")
        killed = launch(powercap, folder / "killed", [asked.seconds, "-1", "1"])
        told("DDP, rank 1 killed by SIGKILL", killed, tw.merge(killed.folder).report, folder / "audit-killed")


if __name__ == "__main__":
    main()
