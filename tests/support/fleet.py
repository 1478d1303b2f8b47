"""Many varied runs: machines, models, units, grids, unknown joules, runs that overlap; each a bundle that verifies."""

from __future__ import annotations

from dataclasses import replace
from math import fsum
from pathlib import Path

import numpy as np

from tests.support.reports import START_NS, bare_report
from torchwatt.audit import write_bundle
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.factor import Factor, Impact, with_factor_id
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Channel, Event, Meter, SamplerStats
from torchwatt.core.report import Report
from torchwatt.core.terms import Domain, weakest_provenance
from torchwatt.core.trace import ModuleInfo

PROJECTS = ("llm", "vision", "speech", "search")
FIRST_UNIX_NS = 1_783_000_000_123_456_789  # 2026-07-02
DAY_NS = 86_400_000_000_000
LOCATION = with_factor_id(
    Factor(
        "", "grid_gwp", 56.0, "g{CO2e}/kW.h", "sourced", "A yearly table", "FRA", 2025, "lifecycle", "CO2e",
        "production", "location", "https://example.org/grids",
    )
)  # fmt: skip
MARKET = with_factor_id(
    Factor(
        "", "contract_gwp", 8.0, "g{CO2e}/kW.h", "declared", "a contract", "FRA", 2025, "lifecycle", "CO2e", "contract",
        "market",
    )
)  # fmt: skip


def run_id(number: int) -> str:
    return f"0198f2c1-7a55-7c11-9d2e-{number:012x}"


def fleet_report(number: int) -> Report:
    """Build the report of one run of a fleet: the same number, the same run."""
    rng = np.random.default_rng(number)
    start_unix_ns = FIRST_UNIX_NS + int(rng.integers(0, 150)) * DAY_NS + int(rng.integers(0, 8 * 10**13))
    if number % 41 == 7:  # a machine without meters
        return bare_report(run_id=run_id(number), start_unix_ns=start_unix_ns)
    duration_s = float(rng.uniform(30, 600))
    depth = int(rng.integers(2, 9))
    domains = [Domain("gpu", i) for i in range(int(rng.choice([1, 1, 2, 4])))] + [Domain("cpu", 0)]
    curves = [_curve(d, rng, duration_s, "counter", "measured") for d in domains]
    curves.append(_curve(Domain("ram"), rng, duration_s, "load_model", "modelled"))
    model = ("TinyGPT", "ResNet", "Conformer")[number % 3]
    ledgers = tuple(_ledger(curve, depth, rng, duration_s, split=curve.domain.kind == "gpu") for curve in curves)
    node = None if number % 23 == 11 else number % 60  # None: its devices are not identified
    report = Report(
        run_id=run_id(number), name=f"run {number}", status="partial" if number % 17 == 3 else "complete",
        start_ns=START_NS, end_ns=START_NS + int(duration_s * 1e9), start_unix_ns=start_unix_ns, ledgers=ledgers,
        curves=tuple(curves), meters=tuple(_meter(curve, node) for curve in curves),
        modules=(ModuleInfo("(root)", model), *(ModuleInfo(f"blocks.{i}.mlp", "Linear", 10, 40) for i in range(depth))),
        units={} if number % 5 == 4 else {("token", "image")[number % 2]: float(rng.integers(1, 10**6))},
        events=(Event(START_NS, "warning", "CONCURRENT_SESSION", "run", "another"),) if number % 23 == 11 else (),
        sampler=SamplerStats("process"),
        software={
            "torchwatt": "0.1.0", "python": "3.11.9", "os": "Linux", "host": f"node-{number % 60}",
            **({} if node is None else {"machine": f"boot-{node}", "process": f"boot-{node}/{number}/1"}),
        },
        declared={"model_id": "org/model-7b", "organisation": "ACME"} if number % 6 == 0 else {},
    )  # fmt: skip
    return _priced(report, market=number % 4 == 0) if number % 7 else report


def write_fleet(folder: Path, numbers: range) -> None:
    """Write runs as a store's folders: `<folder>/<project>/<run_id>`."""
    for number in numbers:
        write_bundle(fleet_report(number), folder / PROJECTS[number % len(PROJECTS)] / run_id(number))


def _curve(domain: Domain, rng: np.random.Generator, duration_s: float, method: str, known: str) -> EnergyCurve:
    t_ns = START_NS + np.linspace(0, int(duration_s * 1e9), 41).astype(np.int64)
    steps_j = rng.uniform(80, 600, 40) * duration_s / 40
    return EnergyCurve(domain, t_ns, np.concatenate(([0.0], np.cumsum(steps_j))), method, known, 0.5)


def _ledger(curve: EnergyCurve, depth: int, rng: np.random.Generator, duration_s: float, *, split: bool) -> Ledger:
    slots = [("(root)", "forward"), ("(idle)", "other"), ("(optimizer)", "optimizer")]
    slots += [(f"blocks.{i}.mlp", phase) for i in range(depth) for phase in ("forward", "backward")]
    if not split:
        slots = [("(unattributed)", "other")]
    joules = (rng.dirichlet(np.ones(len(slots))) * curve.total_j).tolist()
    joules[-1] = curve.total_j - fsum(joules[:-1])
    known = "modelled" if curve.provenance == "modelled" else "apportioned"
    entries = tuple(
        Entry(curve.domain, fqn, phase, j, None, None, None, None, duration_s * j / curve.total_j,
              0 if fqn == "(idle)" else 9, "load_model" if known == "modelled" else "time_share", known)
        for (fqn, phase), j in zip(slots, joules, strict=True)
    )  # fmt: skip
    return Ledger(
        curve.domain, curve.total_j, entries, curve.method, curve.provenance, duration_s, duration_s, curve.u_j,
    )  # fmt: skip


def _meter(curve: EnergyCurve, node: int | None) -> Meter:
    measured = curve.provenance == "measured"
    sensor = {"gpu": "nvml_energy_counter", "cpu": "rapl"}.get(curve.domain.kind, "tdp_model")
    quantity = ("energy", "counter", "J") if measured else ("power", "power", "W")
    channel = Channel(curve.domain, *quantity, 1e-3 if measured else 1.0, 300_000_000_000, sensor)
    names = {"gpu": "NVIDIA H200", "cpu": "Xeon Platinum 8480+"}
    facts = (
        (("uuid", f"GPU-{node:04}-{curve.domain.index}"),) if curve.domain.kind == "gpu" and node is not None else ()
    )
    model = names.get(curve.domain.kind, "64 GB")
    return Meter(curve.domain, (channel,), curve.provenance, "device", model, facts=facts)


def _priced(report: Report, *, market: bool) -> Report:
    factors = (LOCATION, MARKET) if market else (LOCATION,)
    subjects = [("run", report.energy_j, report.provenance)]
    subjects += [(f"device:{ledger.domain}", ledger.energy_j, ledger.provenance) for ledger in report.ledgers]
    impacts = tuple(
        Impact(subject, "gwp", "usage", joules / 3.6e6 * f.value, "g{CO2e}", f"energy_j/3.6e6*{f.kind}", (f.factor_id,),
               "derived", weakest_provenance(known, f.provenance), accounting_method=f.accounting_method)
        for f in factors
        for subject, joules, known in subjects
    )  # fmt: skip
    return replace(report, factors=factors, impacts=impacts)
