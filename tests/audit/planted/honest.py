"""Honest bundles, one a source: live CPU, simulated GPU, imported trace, merged ranks, hours, repriced."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.kineto.trace_files import BASE_NS, module, pair, save
from tests.support import ready
from tests.support.nvml_simulator import PowerTrace, Scenario
from tests.support.ranks import lost, record
from tests.support.worlds import World
from torchwatt.audit import write_bundle
from torchwatt.carbon import CarbonOptions, ecologits
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.report import Report
from torchwatt.core.requests import RequestBatch
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.rank_records import merge_records
from torchwatt.offline.repricing import reprice
from torchwatt.reports.emissions import add_impacts
from torchwatt.reports.report_builder import RunInterval, RunOutcome, build_report
from torchwatt.reports.run_options import RunOptions

RUN_ID = "0193f2c1-7a55-7c11-9d2e-3f1a5b6c7d8e"
MODULUS = 16_000_000  # microjoules: the recorded counter wraps every 16 J
BEFORE_NOON_NS = 1_780_315_198_700_000_000  # 2026-06-01T11:59:58.7Z
YEARLY = """\
kind,value,unit,source_name,lo,hi,source_url,device,data_year,basis,accounting_method,zone,gas
grid_gwp,50.0,g{CO2e}/kW.h,A grid operator,40.0,60.0,https://example.org/grid,,2025,lifecycle,location,FRA,CO2e
residual_mix,300.0,g{CO2e}/kW.h,A residual mix,290.0,310.0,https://example.org/mix,,2025,direct,market,FRA,CO2e
pue,1.2,1,A landlord,1.1,1.3,https://example.org/pue,,2025,,,,
wue,0.3,L/kW.h,A landlord,0.2,0.4,https://example.org/wue,,2025,,,,
embodied_gwp,164.0,kg{CO2e},A maker,150.0,180.0,https://example.org/pcf,cpu,2024,,,,
lifetime,4.0,a,A policy,3.0,6.0,https://example.org/policy,cpu,2024,,,,
share,0.5,1,A scheduler,0.5,0.5,https://example.org/jobs,cpu,2024,,,,
"""
NEXT_YEAR = YEARLY.replace("50.0,", "45.0,").replace("2025", "2026")
HOURS = (
    "Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),"
    "Carbon intensity gCO₂eq/kWh (Life cycle),Carbon-free energy percentage (CFE%),Renewable energy percentage (RE%),"
    "Data source,Data estimated,Data estimation method\n"
    "2026-06-01 11:00:00,France,France,FR,20,40,90,20,rte-france.com,false,\n"
    "2026-06-01 12:00:00,France,France,FR,30,60,90,20,rte-france.com,false,\n"
)
SIMULATED = """
import json, time, torch, torchwatt as tw
model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with tw.profile(model, region="FRA", pue=1.2, csv={target!r}) as run:
    for _ in range(40):
        model(torch.ones(8, 32)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(0.02)
    run.count("sample", 320)
print(json.dumps(run.status))
"""


def replayed(start_unix_ns: int = BEFORE_NOON_NS, requests: tuple[RequestBatch, ...] = (), **asked: object) -> Report:
    """Replay a recorded counter of a CPU package (three layers, 40 steps, 3 s) as a live run would be."""
    world = World([30.0, 55.0, 12.0], [20.0, 35.0, 20.0], steps=40, seed=3)
    recording = world.recording(period_ms=10.0, modulus=MODULUS, start_uj=4_242_424)
    carbon = make_plan(CarbonOptions(**asked), datetime.fromtimestamp(start_unix_ns // 10**9, UTC))
    options = RunOptions(name="replayed", carbon=carbon, baseline_s=0.0)
    bounds = RunInterval(0, world.end_ns, start_unix_ns)
    outcome = RunOutcome("complete", units={"image": 9600.0}, requests=requests)
    return build_report(RUN_ID, options, bounds, recording, world.trace, outcome)


def counter(folder: Path) -> Path:
    """Write a replayed counter with a declared PUE and a country's yearly factor."""
    return write_bundle(replayed(region="FRA", pue=1.2), folder / "counter", samples="csv.gz")


def requests(folder: Path) -> Path:
    """Write a run with requests of a language model: two batches that overlap, one of two requests, one assisted."""
    ms = 1_000_000
    first = (("prefill", 100 * ms, 500 * ms), ("decode", 500 * ms, 1300 * ms))
    second = (("prefill", 900 * ms, 1000 * ms), ("draft", 1000 * ms, 1200 * ms), ("decode", 1200 * ms, 2000 * ms))
    batches = (
        RequestBatch((64, 32), (20, 11), 100 * ms, 1300 * ms, first, cached_tokens=16, cache_bytes=1 << 20),
        RequestBatch((48,), (30,), 900 * ms, 2000 * ms, second, drafted_tokens=40, accepted_tokens=22),
    )
    return write_bundle(replayed(requests=batches), folder / "requests", samples="csv.gz")


def factors(folder: Path) -> Path:
    """Write a run with usage, embodied, total, market, water and SCI rows."""
    (folder / "factors.csv").write_text(YEARLY)
    return write_bundle(replayed(factors=folder / "factors.csv"), folder / "factors", samples="csv.gz")


def hours(folder: Path) -> Path:
    """Write a run that crosses an hour, priced by the hour."""
    (folder / "hours.csv").write_text(HOURS)
    report = replayed(factors=folder / "hours.csv", pue=1.2)
    return write_bundle(report, folder / "hours", samples="csv.gz")


def repriced(folder: Path) -> Path:
    """Write a run that was priced a second time, a year later."""
    (folder / "next.csv").write_text(NEXT_YEAR)
    before = factors(folder)
    return reprice(
        before, CarbonOptions(factors=folder / "next.csv"), scenario="2026", target=folder / "repriced"
    ).directory


def job(folder: Path) -> Path:
    """Write a job of three ranks on one machine, one of which left nothing."""
    report = merge_job(merge_records([record(0, 3), record(1, 3, gpu_j=300.0), lost(2, 3)]))
    priced = add_impacts(report, make_plan(CarbonOptions(region="FRA", pue=1.2), datetime(2026, 11, 24, tzinfo=UTC)))
    return write_bundle(priced, folder / "job", samples="csv.gz")


def imported(folder: Path) -> Path:
    """Write what a trace of 0.4 s and a log of one reading in 0.1 s give, the log ending before the trace."""
    import torchwatt

    events = [module("Net_0", 0, 400_000)]
    for n in range(8):
        at = n * 50_000
        events += [module(f"A_{n % 2}", at, 40_000), *pair(at + 1, at, 50_000, n + 1)]
    log = folder / "power.csv"
    rows = (f"{_stamp(i / 10 - 1)}, {200 + i % 3}.00 W" for i in range(13))
    log.write_text("\n".join(["timestamp, power.draw [W]", *rows]) + "\n")
    report = torchwatt.attribute(save(folder, events, "trace.json"), log)
    return write_bundle(replace(report, name="imported"), folder / "imported", samples="csv.gz")


def _stamp(t_s: float) -> str:
    return datetime.fromtimestamp(BASE_NS / 1e9 + t_s, UTC).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]


def cpu(folder: Path) -> Path:
    """Profile a small training loop here, on a machine without meters: everything is modelled.

    Each step is traced, so that operations of all calls are known.
    """
    import torch

    import torchwatt as tw

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHWATT_POWERCAP_ROOT", str(folder / "no meters"))
        with tw.profile(model, region="FRA", pue=1.2, overhead_budget=1.0) as run:
            for _ in range(40):
                model(torch.ones(16, 64)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                time.sleep(0.01)
            run.count("sample", 640)
    return run.to_csv(folder / "cpu", samples="csv.gz")


def gpu(folder: Path) -> Path:
    """Profile a small training loop beside a simulated GPU that has an energy counter."""
    power = PowerTrace.bursts(100.0, 600.0, on_s=0.030, period_s=0.130)
    scenario = Scenario().gpu("hopper", power, noise_w=2.0).process("self")
    more = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TORCHWATT_POWERCAP_ROOT": str(folder / "none")}
    env = scenario.environment(folder / "scenario", **more)
    assert ready.run_script(SIMULATED.format(target=str(folder / "gpu")), env) == "complete"
    return folder / "gpu"


MAKERS = {make.__name__: make for make in (counter, factors, hours, repriced, job, imported, cpu, requests)}


def make_all(folder: Path) -> dict[str, Path]:
    """Write one bundle a source, but for the simulated GPU's, which needs its library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ecologits, "installed_version", lambda: "")
        made = {}
        for name, make in MAKERS.items():
            (folder / name).mkdir()
            made[name] = make(folder / name)
        return made
