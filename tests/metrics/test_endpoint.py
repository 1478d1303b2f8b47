"""The Prometheus endpoint among strangers: bounded connections, time and descriptors, read under its own names."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import torchwatt as tw
from torchwatt.core.errors import ConfigError
from torchwatt.metrics import prometheus_endpoint as endpoint_module
from torchwatt.metrics.prometheus_endpoint import MAX_CONNECTIONS, parse_host

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def endpoint():
    with tw.metrics.prometheus(port=0) as made:
        yield made


def sent(endpoint, data, timeout_s=10.0):
    """Send bytes, and return the whole answer."""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout_s) as link:
        link.sendall(data)
        answer = b""
        try:
            while part := link.recv(1 << 16):
                answer += part
        except ConnectionError:
            return answer
    return answer


def status(endpoint, host, path="/metrics"):
    answer = sent(endpoint, f"GET {path} HTTP/1.1\r\n{host}\r\n".encode("latin-1"))
    return int(answer.split()[1])


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9464", "127.0.0.1", "127.0.0.1:1", "127.8.9.1:80", "[::1]:9464", "[::1]"]
)
def test_this_machine_reads_under_its_own_names(endpoint, host):
    assert status(endpoint, f"Host: {host}\r\n") == 200


@pytest.mark.parametrize(
    "header",
    [
        "", "Host: \r\n", "Host: evil.example\r\n", "Host: localhost.evil.example\r\n", "Host: 10.0.0.1\r\n",
        "Host: localhost\r\nHost: evil.example\r\n", "Host: evil.example\r\nHost: localhost\r\n",
        "Host: evil.example@localhost\r\n", "Host: localhost#evil\r\n", "Host: 127.0.0.1.evil.example\r\n",
        "Host: 0.0.0.0\r\n", "Host: [::]\r\n", "Host: \xff\r\n", "Host: 2130706433\r\n", "Host: [::1\r\n",
        "X-Forwarded-Host: localhost\r\nHost: evil.example\r\n",
    ],
)  # fmt: skip
def test_a_page_in_a_browser_reads_nothing_under_a_name_of_its_own(endpoint, header):
    assert status(endpoint, header) in {400, 403}


def test_elsewhere_the_bound_address_and_the_allowed_names_are_served():
    with tw.metrics.prometheus(port=0, address="0.0.0.0", allow_hosts=["Node7.example.org"]) as made:  # noqa: S104  the case
        assert status(made, "Host: node7.example.org:9464\r\n") == 200
        assert status(made, "Host: 127.0.0.1\r\n") == 200
        assert status(made, "Host: node8.example.org\r\n") == 403
    for bad in (["a/b"], [""], ["node:9464"], [7], "x y"):
        with pytest.raises(ConfigError, match="allow_hosts="):
            tw.metrics.prometheus(port=0, allow_hosts=bad)


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        ("GET /../../etc/passwd HTTP/1.1", 404), ("GET //metrics HTTP/1.1", 200), ("GET /metrics%00 HTTP/1.1", 404),
        ("GET http://evil.example/metrics HTTP/1.1", 200),
        ("GET /" + "a" * 70_000 + " HTTP/1.1", 414), ("POST /metrics HTTP/1.1", 501), ("GET", 400),
        ("GET /metrics HTTP/9.9", 505), ("GET /metrics?name[]=nothing HTTP/1.1", 200),
    ],
)  # fmt: skip
def test_what_is_no_scrape_is_answered_shortly(endpoint, request_line, expected):
    answer = sent(endpoint, f"{request_line}\r\nHost: localhost\r\n\r\n".encode())
    assert len(answer) < 2000
    if answer:  # a server may close without reading all of a request that is too long
        assert f" {expected} ".encode() in answer.splitlines()[0] or b"Error response" in answer


def test_no_line_of_a_request_becomes_a_header_of_the_answer(endpoint):
    answer = sent(endpoint, b"GET /x%0d%0aSet-Cookie:a HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"Set-Cookie" not in answer
    assert b"Python" not in answer


def test_idle_connections_are_closed_and_a_scrape_goes_through(endpoint, monkeypatch, capfd):
    before = len(list(Path("/proc/self/fd").iterdir()))
    links = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(40)]
    try:
        for link in links[:20]:
            link.sendall(b"GET /metrics HTTP/1.1\r\nHost: loc")  # slow, not silent
        assert status(endpoint, "Host: localhost\r\n") == 200
        ours = len(list(Path("/proc/self/fd").iterdir())) - before - len(links)
        assert ours <= 2 * MAX_CONNECTIONS
    finally:
        for link in links:
            link.close()
    assert capfd.readouterr().err == ""


def test_a_client_that_sends_a_byte_now_and_then_is_closed_in_time(endpoint, monkeypatch):
    monkeypatch.setattr(endpoint_module, "MAX_CONNECTION_S", 0.3)
    with socket.create_connection(("127.0.0.1", endpoint.port)) as link:
        link.settimeout(0.1)
        end_s, closed = time.monotonic() + 20, False
        while time.monotonic() < end_s and not closed:
            try:
                link.sendall(b"X")
                closed = link.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
        assert closed


def test_the_last_descriptors_are_the_programs(endpoint, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, hard))
    try:
        assert sent(endpoint, SCRAPE) == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert b" 200 " in sent(endpoint, SCRAPE)


TRAINING = """
import json, resource, socket, subprocess, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
import torch
import torchwatt as tw
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
optimizer = torch.optim.SGD(model.parameters())
with tw.metrics.prometheus(port=0) as served:
    idle = subprocess.Popen([sys.executable, "-c", '''
import socket, sys
links = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(98)]
print("open", flush=True)
sys.stdin.read()
''', str(served.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    idle.stdout.readline()
    with tw.profile(model, baseline_s=0, journal=sys.argv[1]) as run:
        for _ in range(40):
            model(torch.ones(32, 64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    idle.stdin.close()
    idle.wait()
report = run.report
layers = {entry.fqn for ledger in report.ledgers for entry in ledger.entries}
errors = [event.code for event in report.events if event.severity == "error"]
print(json.dumps([report.status, len(report.steps), sorted(layers), errors, report.sampler.mode]))
"""


@pytest.mark.slow
def test_idle_strangers_do_not_cost_a_training_its_trace(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path / "j")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    status_, steps, layers, errors, mode = json.loads(done.stdout.splitlines()[-1])
    assert (status_, steps, errors, mode) == ("complete", 40, [], "process")
    assert {"0", "1"} <= set(layers)


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("a", "a"), ("A:1", "a"), ("[::1]:2", "::1"), ("a@b", ""), ("a/b", ""), ("a b", ""), ("[", ""), ("", ""),
        (":", ""), ("a:b:c", ""), ("\\a", ""), ("[::1%25eth0]evil", ""), ("[::1]evil:1", ""), ("[a]", ""), ("a:x", ""),
        ("[::1%25lo]:2", "::1%25lo"), ("a\tb", ""), ("a,b", ""), ("localhost:", "localhost"),
    ],
)  # fmt: skip
def test_a_host_is_read_from_its_header(header, host):
    assert parse_host(header) == host


def test_names_of_hosts_come_from_the_command_line(tmp_path):
    script = tmp_path / "s.py"
    script.write_text(
        "import http.client, threading\n"
        "port = next(int(t) for t in open('/proc/self/cmdline').read().split('\\0') if t.isdecimal())\n"
        "for host in ('node7', 'node8'):\n"
        "    link = http.client.HTTPConnection('127.0.0.1', port)\n"
        "    link.request('GET', '/metrics', headers={'Host': host})\n"
        "    print(link.getresponse().status)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["run", "-q", "--no-journal", "--layers", "off", "--metrics", f"prometheus:{port}", "--allow-host", "node7"]
    done = subprocess.run(
        [sys.executable, "-m", "torchwatt", *words, str(script), str(port)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "200\n403\n", done.stderr
