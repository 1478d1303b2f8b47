"""Bundles to be checked and to be spoilt: reports with everything in them, and a hand on single cells."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np

from tests.support.reports import GPU, START_NS, sample_report
from torchwatt.audit import write_files
from torchwatt.audit.bundle_writer import table_files
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.factor import Factor, with_factor_id
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Channel, Event, Meter
from torchwatt.core.report import Report
from torchwatt.core.terms import Domain
from torchwatt.core.trace import ModuleInfo

HOUR_NS = 3_600_000_000_000
Tables = dict[str, bytes]


def rich_report() -> Report:
    """Build a report with a counter's readings, two hours, a market factor and facts that the user declared."""
    report = sample_report()
    gpu = report.ledgers[0]
    end_raw = 1_000_000 + round(gpu.energy_j * 1e3)
    counted = replace(gpu, counter_start_raw=1_000_000, counter_end_raw=end_raw, counter_unit_j=1e-3, counter_wraps=0)
    contract = with_factor_id(
        Factor(
            "", "grid_gwp", 8.0, "g{CO2e}/kW.h", "declared", "contract", "FRA", 2025, "lifecycle", "CO2e", "contract",
            "market",
        )
    )  # fmt: skip
    pue = report.factors[0]
    bought = tuple(
        replace(
            one, value=joules / 3.6e6 * pue.value * contract.value, factor_ids=(pue.factor_id, contract.factor_id),
            accounting_method="market",
        )
        for one in report.impacts
        for joules in [report.energy_j if one.subject == "run" else _joules(report, one.subject)]
    )  # fmt: skip
    hour_ns = report.start_unix_ns // HOUR_NS * HOUR_NS + HOUR_NS
    return replace(
        report,
        ledgers=(counted, *report.ledgers[1:]),
        factors=(*report.factors, contract),
        impacts=(*report.impacts, *bought),
        start_unix_ns=hour_ns - 10_000_000_789,  # ten seconds before the hour
        declared={"organisation": "ACME", "lifecycle_stage": "pretraining", "params_total": 22_000_000},
        events=(*report.events, Event(START_NS + 20_000_000_000, "info", "LATE", "run", "late")),
    )


def _joules(report: Report, subject: str) -> float:
    return next(ledger.energy_j for ledger in report.ledgers if subject == f"device:{ledger.domain}")


def offline_report() -> Report:
    """Build what the join of a recorded trace and a recorded power file gives: one GPU whose layers are known."""
    t_ns = np.arange(0, 2_000_000_001, 20_000_000, dtype=np.int64)
    power_w = 300.0 + 200.0 * np.sin(np.arange(len(t_ns) - 1) / 7.0)
    curve = EnergyCurve(
        GPU, t_ns, np.concatenate(([0.0], np.cumsum(power_w * 0.02))), "power_integral", "measured", 0.8
    )
    parts = {("encoder.0", "forward"): 0.3, ("encoder.0", "backward"): 0.5, ("(communication)", "communication"): 0.05}
    rest_j = curve.total_j - sum(share * curve.total_j for share in parts.values())
    joules = {slot: share * curve.total_j for slot, share in parts.items()} | {("(idle)", "other"): rest_j}
    entries = tuple(
        Entry(GPU, fqn, phase, j, 0.9 * j, 1.1 * j, None, None, 0.2, 7, "time_share", "apportioned")
        for (fqn, phase), j in joules.items()
    )
    ledger = Ledger(GPU, curve.total_j, entries, "power_integral", "measured", 2.0, 2.0, curve.u_j)
    channel = Channel(GPU, "power", "power", "W", 1e-3, 20_000_000, "replay")
    meter = Meter(GPU, (channel,), "measured", "device", "A100", "NVIDIA", (-0.05, 0.05), "Yang et al., SC'24")
    return Report(
        run_id="0193f2c1-7a55-7c11-9d2e-00000000000a", name="offline join", status="complete", start_ns=0,
        end_ns=2_000_000_000, start_unix_ns=1_790_000_000_000_000_000, ledgers=(ledger,), curves=(curve,),
        meters=(meter,), modules=(ModuleInfo("encoder.0", "Linear", 10, 40),), software={"torchwatt": "0.1.0"},
    )  # fmt: skip


def large_report(layers: int, hours: float, rate_hz: float, gpus: int = 1, steps: int = 0) -> Report:
    """Build a long run with many layers, for measuring."""
    rng = np.random.default_rng(0)
    n = int(hours * 3600 * rate_hz)
    t_ns = (np.arange(n + 1) * (1e9 / rate_hz)).astype(np.int64) + START_NS
    curves, ledgers = [], []
    for index in range(gpus):
        domain = Domain("gpu", index)
        energy_j = np.concatenate(([0.0], np.cumsum(rng.uniform(80, 600, n) / rate_hz)))
        curve = EnergyCurve(domain, t_ns, energy_j, "counter", "measured", 0.5)
        slots = [(f"blocks.{i}.proj", phase) for i in range(layers) for phase in ("forward", "backward")]
        shares = rng.dirichlet(np.ones(len(slots) + 1)) * curve.total_j
        joules = [*shares[:-1].tolist(), 0.0]
        joules[-1] = curve.total_j - float(np.sum(joules))
        entries = tuple(
            Entry(domain, fqn, phase, j, None, None, None, None, 1.0, 1000, "time_share", "apportioned")
            for (fqn, phase), j in zip([*slots, ("(idle)", "other")], joules, strict=True)
        )
        curves.append(curve)
        ledgers.append(Ledger(domain, curve.total_j, entries, "counter", "measured", hours * 3600, hours * 3600, 0.5))
    report = sample_report(curves=tuple(curves), ledgers=tuple(ledgers), impacts=(), windows=(), steps=())
    whole = replace(report, end_ns=int(t_ns[-1]), unavailable=(), meters=(), traced_steps=None if not steps else 9)
    return whole if not steps else replace(whole, steps=_steps(whole, steps))


def _steps(report: Report, count: int):
    from torchwatt.core.report import Step

    edges = np.linspace(report.start_ns, report.end_ns, count + 1).astype(np.int64)
    at = {str(curve.domain): curve.at(edges) for curve in report.curves}
    return tuple(
        Step(i, int(edges[i]), int(edges[i + 1]), {name: float(e[i + 1] - e[i]) for name, e in at.items()})
        for i in range(count)
    )


def tables_of(report: Report) -> Tables:
    """Return the tables of a bundle, to be spoilt."""
    return table_files(report)


def sealed(tables: Tables, folder: Path) -> Path:
    """Seal tables as their forger would: every hash and description is right again."""
    return write_files(tables, folder, run_id=rich_report().run_id)


def records(data: bytes) -> list[list[str]]:
    """Read a CSV file as it is written."""
    return list(csv.reader(StringIO(data.decode(), newline="")))


def written(rows: list[list[str]]) -> bytes:
    """Write a CSV file as it was read."""
    out = StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def cell(tables: Tables, file: str, row: int, column: str, new: str | Callable[[str], str]) -> None:
    """Change one cell; `row` counts from 1 without the header."""
    rows = records(tables[file])
    index = rows[0].index(column)
    rows[row][index] = new(rows[row][index]) if callable(new) else new
    tables[file] = written(rows)


def row_where(tables: Tables, file: str, **wanted: str) -> int:
    """Return the number of the first row with these cells."""
    rows = records(tables[file])
    at = {rows[0].index(name): value for name, value in wanted.items()}
    return next(n for n, row in enumerate(rows) if n and all(row[i] == value for i, value in at.items()))


def drop(tables: Tables, file: str, row: int) -> None:
    """Remove a row."""
    rows = records(tables[file])
    del rows[row]
    tables[file] = written(rows)


def samples(tables: Tables, change: Callable) -> None:
    """Change the table of samples: `change` takes and returns a dictionary of lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(BytesIO(tables["sample.parquet"]))
    changed = pa.Table.from_pydict(change(table.to_pydict()), schema=table.schema)
    out = BytesIO()
    pq.write_table(changed, out)
    tables["sample.parquet"] = out.getvalue()
