"""Final facts of a rank: from a session that ends, or from the journal of one that was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchwatt.attribution.jobs.record import RankRecord
from torchwatt.attribution.jobs.shares import BUSY_CPU, PROCESS_CPU, cpu_points, host_shares, thinned
from torchwatt.attribution.scopes import CONTAINS
from torchwatt.core.job import RankFacts
from torchwatt.core.meter import Recording
from torchwatt.core.report import Report
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.session.jobs.host import device_identity
from torchwatt.session.journal.read import read_journal
from torchwatt.session.journal.recorded import recorded
from torchwatt.session.recover import report_from


def last_facts(facts: RankFacts, report: Report, recording: Recording, trace: Trace) -> RankFacts:
    """Add the run's interval, CPU time and host shares to a rank's facts."""
    window = report.start_ns, report.end_ns
    modules, own = _modules(facts, report)
    busy = cpu_points(recording, BUSY_CPU, *window)
    return replace(
        facts,
        devices={**facts.devices, **modules},
        own=own,
        start_ns=report.start_ns,
        start_unix_ns=report.start_unix_ns,
        cpu=thinned(cpu_points(recording, PROCESS_CPU, *window)),
        host_busy_s=max(busy[-1][1] - busy[0][1], 0.0) if busy else None,
        host_shares=host_shares(recording, trace, *window),
    )


def _modules(facts: RankFacts, report: Report) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the identity of the superchip of each of a rank's GPUs, and the domains that belong to this rank alone.

    `module:0` names a different module on each rank, or the same one for ranks whose GPUs share it.
    """
    identities: dict[str, str] = {}
    own = list(facts.own)
    for meter in (meter for meter in report.meters if meter.domain.kind == "module"):
        gpus = (meter.fact(CONTAINS) or "").split(";")
        cpu_affinity = meter.fact("cpu_affinity")
        first_gpu = report.meter(gpus[0])
        name = cpu_affinity or (first_gpu.fact("uuid") if first_gpu is not None else None) or gpus[0]
        identities[str(meter.domain)] = device_identity(facts.host, f"module beside {name}")
        own += [str(meter.domain)] if set(gpus) & set(facts.own) and str(meter.domain) not in own else []
    return identities, tuple(own)


def recovered(facts: RankFacts, journal: Path, root: Path) -> RankRecord:
    """Return what a rank's journal contains: status `partial`, or `running` while the rank runs.

    Raises:
        BundleError: The journal cannot be read.
    """
    content = read_journal(journal, root)
    report = report_from(content)
    counted = {*facts.own, *facts.shared}  # a journal does not record which devices belong to no rank
    counted |= set(_modules(facts, report)[1])
    rank_report = replace(report, ledgers=tuple(ledger for ledger in report.ledgers if str(ledger.domain) in counted))
    return RankRecord(last_facts(facts, rank_report, recorded(content), content.trace or EMPTY_TRACE), rank_report)
