"""Made records of ranks: a GPU of its own each, one package a machine, modelled RAM; every number is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.job import ClockOffset, HostShare, RankFacts, RankPlace
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Channel, Event, Meter, Unavailable
from torchwatt.core.report import Report, Step
from torchwatt.core.terms import Domain
from torchwatt.core.trace import ModuleInfo
from torchwatt.distributed.rank_records import RankRecord

S = 1_000_000_000
UNIX_NS = 1_795_500_000 * S
RAM, CPU = Domain("ram"), Domain("cpu", 0)


def ledger(domain: Domain, joules: dict[tuple[str, str], float], seconds: float, known: str = "measured") -> Ledger:
    """Build the books of one domain from (layer, phase) -> joules."""
    modelled = known == "modelled"
    entries = tuple(
        Entry(domain, fqn, phase, j, 0.9 * j, 1.1 * j, None, None, seconds / len(joules), 3,
              "load_model" if modelled else "fit", "modelled" if modelled else "apportioned")
        for (fqn, phase), j in joules.items()
    )  # fmt: skip
    total_j = sum(joules.values())
    return Ledger(
        domain, total_j, entries, "load_model" if modelled else "counter", known, seconds, seconds, 0.5,
        sentence=f"{domain}: made; layers by power fitted to the readings.",
    )  # fmt: skip


def meter(domain: Domain, scope: str = "device", known: str = "measured") -> Meter:
    """Build a meter."""
    channel = Channel(domain, "energy", "counter" if known == "measured" else "power", "J", 1e-3, 20_000_000, "made")
    return Meter(domain, (channel,), known, scope, "made", accuracy_rel=(-0.05, 0.05))


def curve(domain: Domain, total_j: float, start_ns: int, end_ns: int, known: str = "measured") -> EnergyCurve:
    """Build a straight curve."""
    t_ns = np.linspace(start_ns, end_ns, 11).astype(np.int64)
    method = "counter" if known == "measured" else "load_model"
    return EnergyCurve(domain, t_ns, np.linspace(0.0, total_j, 11), method, known, 0.5)


def record(
    rank: int,
    size: int,
    *,
    per_node: int = 4,
    gpu_j: float = 100.0,
    cpu_j: float = 60.0,
    ram_j: float = 3.0,
    cpu_s: float = 2.0,
    busy_s: float = 10.0,
    start_s: float = 5.0,
    seconds: float = 4.0,
    offset_ns: int = 0,
    gpu: int | None = None,
    status: str = "complete",
    job: str = "made",
    away_s: float = 0.0,
) -> RankRecord:
    """Build what one rank left; `offset_ns`: its clock behind rank 0's, `away_s`: how long its meters were away."""
    node, local = divmod(rank, per_node)
    start_ns, leads = round(start_s * S) - offset_ns, local == 0
    end_ns = start_ns + round(seconds * S)
    own = Domain("gpu", local if gpu is None else gpu)
    books = [
        (ledger(own, {("fc", "forward"): 0.3 * gpu_j, ("fc", "backward"): 0.5 * gpu_j,
                      ("(communication)", "communication"): 0.2 * gpu_j}, seconds), "device"),
        (ledger(RAM, {("fc", "forward"): ram_j}, seconds, "modelled"), "process"),
    ]  # fmt: skip
    if leads:
        books.append((ledger(CPU, {("(unattributed)", "other"): cpu_j}, seconds), "device"))
    ledgers = tuple(replace(item, known_s=max(seconds - away_s, 0.0)) for item, _ in books)
    report = Report(
        run_id=f"0193f2c1-7a55-7c11-9d2e-{rank:012d}",
        name="made",
        status=status,
        start_ns=start_ns,
        end_ns=end_ns,
        start_unix_ns=UNIX_NS + round(start_s * S),
        ledgers=ledgers,
        curves=tuple(curve(x.domain, x.energy_j, start_ns, end_ns, x.provenance) for x in ledgers),
        meters=tuple(meter(x.domain, scope, x.provenance) for x, scope in books),
        unavailable=() if leads else (Unavailable("cpu:0", "metered by the first rank of the machine"),),
        events=(Event(start_ns, "info", "SAID", "run", "the same on every rank"),),
        steps=(Step(0, start_ns, start_ns + S, {}), Step(1, start_ns + S, start_ns + 2 * S, {})),
        modules=(ModuleInfo("fc", "Linear", 10, 40),),
        units={"image": 8.0},
    )
    facts = RankFacts(
        place=RankPlace(rank, size, local, per_node, node, job, "torchrun"),
        host=f"host-{node}",
        run_id=report.run_id,
        start_ns=start_ns,
        start_unix_ns=report.start_unix_ns,
        devices={str(own): f"uuid-{node}-{own.index}"},
        own=(str(own), "ram"),
        shared=("cpu:0",) if leads else (),
        cpu=((start_ns, 0.0), (end_ns, cpu_s)),
        host_busy_s=busy_s,
        host_shares=(
            HostShare("fc", "forward", 0.75 * cpu_s, 1.0, 3),
            HostShare("fc", "backward", 0.25 * cpu_s, 1.0, 3),
        ),
        clock=(ClockOffset(start_ns, offset_ns, 150_000),) if leads and node else (),
        ended=True,
    )
    return RankRecord(facts, report)


def lost(rank: int, size: int, why: str = "left no bundle", **kinds: object) -> RankRecord:
    """Build what a rank leaves that was killed: that it was there."""
    made = record(rank, size, **kinds)
    return RankRecord(replace(made.facts, cpu=(), host_shares=(), ended=False), None, why)
