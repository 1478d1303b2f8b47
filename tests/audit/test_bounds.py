"""Beyond every bound at which a run is folded, `verify` and `rebuild` take what was written (docs/audit.md)."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import torchwatt as tw
from tests.support.reports import bare_report, named_report, sample_report
from torchwatt.audit import read_bundle, verify, write_bundle
from torchwatt.audit.cell_codec import LONGEST_TEXT
from torchwatt.audit.report_loader import load_report
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.meter import Event
from torchwatt.core.report import Window
from torchwatt.core.terms import Domain
from torchwatt.sensors import sampler
from torchwatt.session import session
from torchwatt.tracing import aggregated_spans, log_rows, loop_steps, step_controller, thread_log, trace_spans
from torchwatt.tracing.scope import StepMarks

MOST = 16
DAY_NS = 86_400 * 10**9


@pytest.fixture(scope="module")
def loop():
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    return net, torch.optim.SGD(net.parameters(), lr=1e-3), torch.randn(2, 4)


def train(loop, steps, after=lambda number: None):
    net, optimizer, batch = loop
    for number in range(steps):
        optimizer.zero_grad()
        net(batch).mean().backward()
        optimizer.step()
        after(number)


def evaluate(loop, number, every=7):
    net, _, batch = loop
    if number % every == every - 1:
        with torch.no_grad():
            net(batch)


def marked(loop, run, steps, resumes):
    net, _, batch = loop
    for number in range(steps):
        net(batch)
        run.step()
        if resumes(number):
            run.resume()


def nested(loop, windows):
    for number in range(windows):
        with tw.profile(name=f"window {number}"):
            train(loop, 1)


PROGRAMS = {
    "steps of an optimizer": (lambda loop, run: train(loop, 101), 101),
    "training and evaluation": (lambda loop, run: train(loop, 101, lambda n: evaluate(loop, n)), None),
    "calls of a model": (lambda loop, run: [loop[0](loop[2]) for _ in range(500)], 500),
    "marks": (lambda loop, run: marked(loop, run, 41, lambda n: False), 41),
    "marks with pauses": (lambda loop, run: marked(loop, run, 41, lambda n: n % 3 == 0), 41),
    "only the last row stands for two": (lambda loop, run: marked(loop, run, MOST + 1, lambda n: n < MOST - 1), 17),
    "windows": (lambda loop, run: nested(loop, 20), 20),
}


def checked(folder):
    result = verify(folder)
    assert result.ok, [str(finding) for finding in result.findings[:3]]
    return read_bundle(folder)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_beyond_each_bound_of_the_trace(program, loop, tmp_path, monkeypatch):
    for module, name in ((thread_log, "MAX_RECORDS"), (aggregated_spans, "MAX_KINDS"), (step_controller, "FOLD_STEPS"),
                         (thread_log, "MAX_SKELETONS"), (step_controller, "COMPACT_ROWS"), (log_rows, "FORCE_ROWS"),
                         (trace_spans, "MAX_FILLED")):  # fmt: skip
        monkeypatch.setattr(module, name, MOST)
    for bounded in (StepMarks, loop_steps.OptimizerEnds):
        monkeypatch.setattr(bounded.__init__, "__defaults__", (MOST,))
    run_program, steps = PROGRAMS[program]
    with tw.profile(csv=tmp_path / "bundle") as run:
        run_program(loop, run)
    bundle = checked(tmp_path / "bundle")
    assert int(bundle.run["step_count"]) == run.report.step_count
    if steps is not None:
        assert run.report.step_count == steps
    again = load_report(tmp_path / "bundle")
    assert [(step.index, step.count) for step in again.steps] == [(step.index, step.count) for step in run.report.steps]


def test_a_journal_of_few_filled_spans(loop, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "MAX_FILLED_SPANS", MOST)
    monkeypatch.setattr(StepMarks.__init__, "__defaults__", (MOST,))
    with tw.profile(journal=tmp_path / "journal") as run:
        train(loop, 101)
    again = tw.recover(tmp_path / "journal")
    write_bundle(again, tmp_path / "bundle")
    checked(tmp_path / "bundle")
    assert again.step_count == run.report.step_count == 101


def test_more_readings_than_a_channel_has_room_for(loop, powercap, tmp_path, monkeypatch):
    monkeypatch.setitem(sampler.Sampler.__init__.__kwdefaults__, "capacity", 32)
    with tw.profile(powercap_root=powercap.root, csv=tmp_path / "bundle") as run:
        train(loop, 100, lambda _: time.sleep(0.01))
    assert len(run.report.curves[0].t_ns) < 40
    assert int(checked(tmp_path / "bundle").run["step_count"]) == 100


LONG = "x" * 200_000
WORDS = {
    "the name of the run": sample_report(name=LONG),
    "the reason of its end": sample_report(exit_reason=LONG, status="aborted"),
    "a window": sample_report(windows=(Window(LONG, 5_000_000_000_000, 5_000_000_000_001, None),)),
    "a module": named_report(f"{LONG}1", f"{LONG}2", "\n" * 200_000),
    "a unit": sample_report(units={LONG: 3.0}),
    "many units": sample_report(units={f"unit {n}": float(n) for n in range(20_000)}),
    "a unit of many parts": sample_report(units={"a;b=c": 2.0, "d": 3.0}),
    "an event": bare_report(events=(Event(1, "warning", "X", LONG, LONG),)),
    "many events": bare_report(events=tuple(Event(n, "info", "X", f"s{n}", "again") for n in range(20_000))),
}


@pytest.mark.parametrize("what", WORDS)
def test_texts_longer_than_a_cell(what, tmp_path):
    write_bundle(WORDS[what], tmp_path / "bundle")
    bundle = checked(tmp_path / "bundle")
    cells = [cell for table in ("run", "layer", "window", "event") for row in bundle[table] for cell in row.values()]
    assert max(len(cell) for cell in cells if isinstance(cell, str)) <= LONGEST_TEXT
    again = load_report(tmp_path / "bundle")
    assert again.energy_j == WORDS[what].energy_j
    first = sorted(WORDS[what].units.items())[:1]
    assert sorted(again.units.items())[:1] == [(unit[:200], count) for unit, count in first]


@pytest.mark.parametrize("days", [0, 120, 400, 1000, 36_500])
def test_a_curve_says_the_same_however_long_the_machine_is_up(days):
    t_ns = np.arange(5, dtype=np.int64) * 333_333_333 + days * DAY_NS + 1
    energy_j = np.array([0.0, 3.1, 7.9, 8.0, 21.3])
    curve = EnergyCurve(Domain("cpu", 0), t_ns, energy_j, "counter", "measured")
    for since_ns in (1, 100_000_007, 333_333_334, 777_777_777, 1_333_333_331):
        left = since_ns // 333_333_333
        part = (since_ns - left * 333_333_333) / 333_333_333
        expected_j = energy_j[left] + part * (energy_j[left + 1] - energy_j[left])
        assert curve.at(int(t_ns[0]) + since_ns) == pytest.approx(expected_j, rel=1e-12)


LONG_RUN = """
import sys, torch, torchwatt as tw
net = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
batch = torch.randn(2, 4)
with tw.profile(net, csv=sys.argv[1]) as run:
    for _ in range(45_001):
        optimizer.zero_grad()
        net(batch).mean().backward()
        optimizer.step()
"""


@pytest.mark.heavy
def test_a_run_of_45001_steps(tmp_path):
    script = tmp_path / "long.py"
    script.write_text(LONG_RUN)
    command = [sys.executable, str(script), str(tmp_path / "bundle")]
    subprocess.run(command, check=True, capture_output=True, timeout=170)
    bundle = checked(tmp_path / "bundle")
    assert int(bundle.run["step_count"]) == 45_001
    assert any("-" in row["name"] for row in bundle["window"])
