"""`torchwatt watch` beside llama.cpp's own server: its tokens are the client's, its joules those of the meters."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import fsum
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.support import ready
from tests.support.llama_server import NotBuiltError, llama_server, small_model
from tests.support.powercap import FakePowercap

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(3600)]  # the first time, the server is built
WATTS = {"intel-rapl:0": ("package-0", 65.0)}


@pytest.fixture(scope="module")
def program():
    try:
        return llama_server(), small_model()
    except NotBuiltError as error:
        pytest.skip(f"llama-server: {error}")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def serving(program, port, folder):
    server, model = program
    options = ("--metrics", "--offline", "--threads", "2", "--ctx-size", "2048", "--parallel", "2", "--seed", "1")
    command = [server, "--model", model, "--host", "127.0.0.1", "--port", str(port), *options]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end_s = time.monotonic() + 120
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (URLError, OSError):
                assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
                assert time.monotonic() < end_s
                time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def complete(port, prompt, tokens):
    """Send a request; return what the server says of its tokens."""
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0.8}).encode()
    request = Request(f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=300) as response:  # noqa: S310  # our own server
        return json.load(response)["usage"]


def rows_of(folder, table):
    with (folder / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def watching(port, powercap, folder, line):
    """Run `torchwatt watch` until the block ends, and check its end; the block begins when it has said a line."""
    url = f"http://127.0.0.1:{port}/metrics"
    command = [sys.executable, "-m", "torchwatt", "watch", "--url", url, "--interval", "0.5", "--csv", folder]
    env = {**os.environ, "TORCHWATT_POWERCAP_ROOT": str(powercap.root)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = [process.stderr.readline()]
    assert line in seen[0]
    yield seen
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    seen += [stdout, stderr]
    assert process.returncode == 0, stderr


def test_tokens_are_the_clients_and_joules_the_meters(program, tmp_path):
    port, folder = free_port(), tmp_path / "bundle"
    prompts = [f"Story {n}: once upon a time, in a village by the sea, there lived " + "very " * n for n in range(6)]
    prompts += prompts[:2]  # from the cache of prompts
    with (
        FakePowercap(tmp_path / "powercap", WATTS) as powercap,
        serving(program, port, tmp_path),
        watching(port, powercap, folder, "llama.cpp server") as seen,
        ThreadPoolExecutor(2) as clients,
    ):
        usages = list(clients.map(lambda prompt: complete(port, prompt, 24), prompts))
        time.sleep(1.2)  # without requests
    client = [sum(usage[name] for usage in usages) for name in ("prompt_tokens", "completion_tokens")]
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    windows = [row for row in rows_of(folder, "window") if row["output_tokens"]]
    watched = [fsum(float(row[name]) for row in windows) for name in ("input_tokens", "output_tokens")]
    assert watched == client
    assert min(client) > 100
    assert f"({cached:,} of them from its cache)" in seen[1]
    joules = fsum(float(row["energy_j"]) for row in windows)
    seconds = sum(int(row["t_end_ns"]) - int(row["t_start_ns"]) for row in windows) / 1e9
    assert joules == pytest.approx(65 * seconds, rel=0.01)
    assert any(row["kind"] == "idle" for row in windows)
    (run,) = rows_of(folder, "run")
    assert run["status"] == "complete"
    printed = re.search(r"per token +(\S+) (mJ|J) per output token · (\S+) (mJ|J) per token", seen[1])
    scale = {"mJ": 1e-3, "J": 1.0}
    assert float(printed[1]) * scale[printed[2]] == pytest.approx(joules / client[1], rel=0.01)
    assert float(printed[3]) * scale[printed[4]] == pytest.approx(joules / sum(client), rel=0.01)
    assert ready.torchwatt("verify", folder).returncode == 0


def test_a_restart_of_the_server_is_said_and_counts_no_token_twice(program, tmp_path):
    port, folder = free_port(), tmp_path / "bundle"
    with FakePowercap(tmp_path / "powercap", WATTS) as powercap:
        with serving(program, port, tmp_path):
            watched = watching(port, powercap, folder, "llama.cpp server")
            seen = watched.__enter__()
            usages = [complete(port, "One two three four", 8) for _ in range(2)]
            time.sleep(1.1)
        with serving(program, port, tmp_path):
            time.sleep(1.1)
            usages += [complete(port, "Five six seven", 8)]
            watched.__exit__(None, None, None)
    windows = rows_of(folder, "window")
    assert fsum(float(row["output_tokens"] or 0) for row in windows) == sum(u["completion_tokens"] for u in usages)
    assert fsum(float(row["input_tokens"] or 0) for row in windows) == sum(u["prompt_tokens"] for u in usages)
    gaps = [row for row in windows if row["name"] == "no page"]
    assert len(gap_joules := [float(row["energy_j"]) for row in gaps]) == 1
    assert gap_joules[0] > 0
    codes = {row["code"] for row in rows_of(folder, "event")}
    assert {"SERVER_SILENT", "SERVER_BACK", "SERVER_RESTART", "TOKENS_PARTIAL"} <= codes
    assert "has started again" in seen[2]
    assert ready.torchwatt("verify", folder).returncode == 0


def test_a_server_without_its_metrics_is_an_error_that_says_how_to_start_it(program, tmp_path):
    port = free_port()
    server, model = program
    with (tmp_path / "server.log").open("wb") as log:
        command = [server, "--model", model, "--host", "127.0.0.1", "--port", str(port), "--offline"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end_s = time.monotonic() + 120
        while True:
            done = ready.torchwatt("watch", "--url", f"http://127.0.0.1:{port}/metrics")
            assert done.returncode == 2
            if "HTTP status 501" in done.stderr:
                break
            assert time.monotonic() < end_s, done.stderr  # refused, or 503 while the model is loaded
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    assert "llama-server --metrics" in done.stderr
