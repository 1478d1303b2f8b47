"""`torchwatt watch` beside a page of counters that the test serves, and meters of known watts."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from math import fsum

import pytest

from tests.support import ready
from tests.support.powercap import FakePowercap

WATTS = {"intel-rapl:0": ("package-0", 40.0), "intel-rapl:0:0": ("dram", 5.0)}
INTERVAL_S = 0.25
PAGE = """\
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="tiny"}} {0}.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {1}.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="tiny"}} 1.0
"""


class PageServer:
    """Serves counters; `served` has what each read was told: which start of the server, input and output tokens."""

    def __init__(self):
        self.counts, self.starts, self.served, self.port = [1000, 500], 0, [], 0
        self.hangs = threading.Event()
        self.freed = threading.Event()
        self.start()

    def start(self):
        page_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if page_server.hangs.is_set():
                    page_server.freed.wait(30)
                    return
                if self.path != "/metrics":
                    self.send_error(404)
                    return
                counts = tuple(page_server.counts)
                body = PAGE.format(*counts).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                page_server.served.append((page_server.starts, *counts))

            def log_message(self, *_):
                """Print nothing."""

        self.starts += 1
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def make(self, inputs, outputs):
        self.counts = [self.counts[0] + inputs, self.counts[1] + outputs]

    def wait_for_reads(self, count):
        """Wait until the page was read so many times more."""
        count, end_s = count + len(self.served), time.monotonic() + 60
        while len(self.served) < count:
            assert time.monotonic() < end_s, "watch reads no pages"
            time.sleep(0.01)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/metrics"


@pytest.fixture
def page_server():
    server = PageServer()
    yield server
    server.freed.set()
    server.stop()


@pytest.fixture
def powercap(tmp_path):
    with FakePowercap(tmp_path / "powercap", WATTS) as made:
        yield made


def command(page_server, *options):
    return [
        sys.executable,
        "-m",
        "torchwatt",
        "watch",
        "--url",
        page_server.url,
        "--interval",
        str(INTERVAL_S),
        *options,
    ]


def environ(powercap):
    return {"TORCHWATT_POWERCAP_ROOT": str(powercap.root), "http_proxy": "http://127.0.0.1:9"}  # no proxy is used


def rows_of(folder, table):
    with (folder / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def known(rows):
    """Return seconds, joules, input and output tokens of the windows whose tokens are known."""
    rows = [row for row in rows if row["output_tokens"]]
    seconds = sum(int(row["t_end_ns"]) - int(row["t_start_ns"]) for row in rows) / 1e9
    return (
        seconds,
        *(fsum(float(row[name]) for row in rows) for name in ("energy_j", "input_tokens", "output_tokens")),
    )


def counted_by(page_server):
    """Return input and output tokens between the first and the last read of each start, but that before the run."""
    sums = [0, 0]
    for _, reads in groupby(page_server.served[1:], key=lambda read: read[0]):
        (_, *first), *_, (_, *last) = list(reads)
        sums = [total + after - before for total, before, after in zip(sums, first, last, strict=True)]
    return sums


def figure(text, pattern):
    """Return a printed energy in joules."""
    number, unit = re.search(rf"([\d.]+) (mJ|J) {pattern}", text).groups()
    return float(number) * {"mJ": 1e-3, "J": 1}[unit]


@pytest.mark.alone  # counts reads and joules in real time
def test_tokens_are_the_servers_and_joules_the_meters_over_a_restart(page_server, powercap, tmp_path):
    pytest.importorskip("pyte", reason="pyte emulates the terminal: pip install pyte")
    from tests.support.terminal import Terminal

    def serve():
        page_server.wait_for_reads(3)
        for _ in range(8):
            page_server.make(60, 20)
            page_server.wait_for_reads(1)
        page_server.stop()
        time.sleep(4 * INTERVAL_S)
        page_server.counts = [3, 1]
        page_server.start()
        page_server.wait_for_reads(2)
        for _ in range(4):
            page_server.make(30, 10)
            page_server.wait_for_reads(1)

    serving = threading.Thread(target=serve)
    serving.start()
    folder = tmp_path / "bundle"
    watched = Terminal(command(page_server, "--seconds", "8", "--csv", str(folder)), tmp_path, **environ(powercap))
    serving.join()
    assert watched.status == 0
    windows = rows_of(folder, "window")
    seconds, joules, inputs, outputs = known(windows)
    assert [inputs, outputs] == counted_by(page_server) == [8 * 60 + 4 * 30, 8 * 20 + 4 * 10]
    assert joules == pytest.approx(45 * seconds, rel=0.01)
    every_j = fsum(float(row["energy_j"]) for row in windows)
    (run,) = rows_of(folder, "run")
    assert every_j == pytest.approx(45 * float(run["duration_s"]), rel=0.01)
    assert (run["status"], run["units_counted"]) == ("partial", "")
    gap = [row for row in windows if row["name"] == "no page"]
    assert len(gap) == 1
    assert float(gap[0]["energy_j"]) > 45 * 3 * INTERVAL_S
    events = {row["code"]: row["message"] for row in rows_of(folder, "event")}
    assert {"SERVER_SILENT", "SERVER_BACK", "SERVER_RESTART", "TOKENS_PARTIAL"} <= set(events)
    text = watched.text
    assert figure(text, "per output token") == pytest.approx(joules / outputs, rel=0.01)
    assert figure(text, "per token, input and output") == pytest.approx(joules / (inputs + outputs), rel=0.01)
    assert "of cpu:0 + dram:0, measured" in text
    assert "no page: " in text
    assert "the server has started again" in " ".join(text.split())
    rows = [row for row in watched.rows if "tok/s" in row]
    assert len(rows) >= 3
    assert any(re.search(r"45(\.\d)? W · [\d.]+ tok/s · [\d.]+ m?J/output", row) for row in rows)
    done = ready.torchwatt("verify", folder)
    assert done.returncode == 0, done.stdout


def test_ctrl_c_ends_with_the_bundle_of_the_whole_run(page_server, powercap, tmp_path):
    folder = tmp_path / "bundle"
    env = {**os.environ, **environ(powercap)}
    watching = subprocess.Popen(
        command(page_server, "--csv", str(folder)), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    page_server.wait_for_reads(2)
    page_server.make(0, 100)
    page_server.wait_for_reads(2)
    page_server.make(12, 300)  # the last read is after Ctrl-C
    watching.send_signal(signal.SIGINT)
    stdout, stderr = watching.communicate(timeout=60)
    assert watching.returncode == 0, stderr
    _, joules, inputs, outputs = known(rows_of(folder, "window"))
    assert (inputs, outputs) == (12, 400)
    (run,) = rows_of(folder, "run")
    assert run["status"] == "complete"
    assert set(run["units_counted"].split(";")) == {"input_token=12.0", "output_token=400.0"}
    assert figure(stdout, "per output token") == pytest.approx(joules / 400, rel=0.01)
    assert "tok/s" not in stderr  # the live row is for a terminal
    assert ready.torchwatt("verify", folder).returncode == 0


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["TERM", "two Ctrl-C"])
def test_a_server_that_hangs_delays_the_end_by_seconds_only(signals, page_server, powercap, tmp_path):
    folder = tmp_path / "bundle"
    watching = subprocess.Popen(
        command(page_server, "-q", "--csv", str(folder)),
        env={**os.environ, **environ(powercap)},
        stderr=subprocess.PIPE,
    )
    page_server.wait_for_reads(4)
    page_server.hangs.set()
    time.sleep(3 * INTERVAL_S)
    before_s = time.monotonic()
    for number in signals:
        watching.send_signal(number)
        time.sleep(0.5)
    watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert time.monotonic() - before_s < 10
    (run,) = rows_of(folder, "run")
    assert (run["status"], run["units_counted"]) == ("partial", "")
    last = rows_of(folder, "window")[-1]
    assert (last["name"], last["output_tokens"]) == ("after the last page", "")
    assert float(last["energy_j"]) > 45 * INTERVAL_S


def test_without_a_meter_tokens_are_counted_and_no_joules_are_stated(page_server, tmp_path):
    env = {"TORCHWATT_POWERCAP_ROOT": str(tmp_path / "none")}
    options = ("--interval", INTERVAL_S, "--seconds", 1, "--csv", tmp_path / "bundle")
    done = ready.torchwatt("watch", "--url", page_server.url, *options, env=env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"per token +— · nothing was metered", done.stdout)
    assert "0 input · 0 output" in done.stdout
    assert all(row["energy_j"] == "" for row in rows_of(tmp_path / "bundle", "window"))
    assert "SAMPLE_GAP" not in done.stdout


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--url", "http://127.0.0.1:1/metrics"), "Connection refused; a server must run with its metrics on"),
        (("--url", "{root}/other"), "HTTP status 404; the address usually ends with /metrics; a server must run"),
        (("--url", "{url}", "--input-counter", "a", "--output-counter", "b"), "no counters of named counters"),
        (("--url", "{url}", "--input-counter", "a"), "give two different names"),
        (("--url", "metrics"), "give an http or https address, such as"),
        (("--url", "{url}", "--interval", "0"), "--interval 0: give 0.1 to 600 seconds"),
        (("--url", "{url}", "--seconds", "-1"), "--seconds -1: give a positive number"),
    ],
)
def test_what_cannot_be_watched_is_one_line_with_the_fix(options, why, page_server):
    root = page_server.url.removesuffix("/metrics")
    done = ready.torchwatt("watch", *(option.format(url=page_server.url, root=root) for option in options))
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
