"""Sockets are opened where the user asked for it, and nowhere else."""

import ast
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.carbon.worlds import HOUR, NOON, found, usage
from torchwatt.carbon import CarbonOptions
from torchwatt.carbon.electricity_maps_api import fetch_hours
from torchwatt.carbon.pricing import price_run
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.errors import FactorError

KWH_J = 3.6e6


def row(hour, grams, **more):
    return {"zone": "FR", "carbonIntensity": grams, "datetime": f"2026-06-01T{hour}:00:00.000Z", **more}


GOOD = {
    "zone": "FR",
    "data": [
        row(12, 40, emissionFactorType="lifecycle", isEstimated=False, estimationMethod=None),
        row(13, 60, emissionFactorType="lifecycle", isEstimated=True, estimationMethod="TIME_SLICER_AVERAGE"),
    ],
}


@pytest.fixture
def server():
    """Answer on the loopback like the API does, and remember what was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.options.append((urlsplit(self.path), {k.lower(): v for k, v in self.headers.items()}))
            body = (
                self.server.answer if isinstance(self.server.answer, bytes) else json.dumps(self.server.answer).encode()
            )
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.options, server.answer, server.status = [], GOOD, 200
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, hours=(HOUR, HOUR + 1), **changes):
    url = f"http://127.0.0.1:{server.server_port}"
    return fetch_hours(hours, **({"zone": "FR", "token": "s3cret", "at": NOON, "url": url} | changes))


def test_the_api_is_asked_for_the_hours_of_one_named_zone(server):
    grid = fetch(server)
    ((url, headers),) = server.options
    assert url.path == "/v3/carbon-intensity/past-range"
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert (query["zone"], query["start"], query["end"]) == ("FR", "2026-06-01T12:00:00Z", "2026-06-01T14:00:00Z")
    assert query["shouldUseFallbackCallerLookup"] == "false"
    assert headers["auth-token"] == "s3cret"
    priced = price_run(usage(KWH_J, KWH_J), make_plan(CarbonOptions(), NOON, extra=[grid]))
    assert found(priced, "run", "gwp", "usage", "location").value == pytest.approx(100.0)
    assert [(f.zone, f.is_estimated, f.estimation_method) for f in priced.factors] == [
        ("FR", False, ""),
        ("FR", True, "TIME_SLICER_AVERAGE"),
    ]
    assert {f.retrieved_at for f in priced.factors} == {NOON}
    assert "s3cret" not in repr(priced)


@pytest.mark.parametrize(
    ("answer", "status", "complaint"),
    [
        ({"message": "Invalid auth-token"}, 401, "no answer"),
        (b"<html>", 200, "no answer"),
        ({"data": "none"}, 200, "expected a list"),
        ({"data": [row(12, "dirty")]}, 200, "cannot read"),
        ({"data": [row(12, 40) | {"zone": "DE"}]}, 200, "was answered 'DE'"),
        ({"data": [row(12, 40) | {"datetime": "2026-06-01T12:00:00"}]}, 200, "cannot read"),
    ],
)
def test_a_refusal_is_one_clear_error_without_the_token(server, answer, status, complaint):
    server.answer, server.status = answer, status
    with pytest.raises(FactorError, match=complaint) as caught:
        fetch(server)
    assert "s3cret" not in str(caught.value)


def test_an_hour_without_a_number_stays_missing(server):
    server.answer = {"data": [row(12, 40), row(13, None)]}
    assert fetch(server).find_missing([HOUR, HOUR + 1]) == [HOUR + 1]


def test_what_cannot_be_asked_is_not_asked(server):
    with pytest.raises(FactorError, match="history file"):
        fetch(server, hours=(HOUR, HOUR + 240))
    with pytest.raises(FactorError, match="token"):
        fetch(server, token="")
    with pytest.raises(FactorError, match="http"):
        fetch(server, url="file:///etc")
    assert server.options == []


NETWORK = {"socket", "ssl", "http", "urllib.request", "requests", "httpx", "aiohttp", "urllib3", "ftplib", "smtplib"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_one_module_of_all_can_open_a_connection_and_one_listens_and_none_imports_it_by_itself():
    import torchwatt

    root = Path(torchwatt.__file__).parent
    able, users = set(), set()
    for path in root.rglob("*.py"):
        names = set(imports(path))
        if any(name == one or name.startswith(f"{one}.") for name in names for one in NETWORK):
            able.add(path.relative_to(root).as_posix())
        if "torchwatt.carbon.electricity_maps_api" in names:
            users.add(path.relative_to(root).as_posix())
    # The second listens; the third reads the page that `torchwatt watch --url` names.
    assert able == {
        "carbon/electricity_maps_api.py", "metrics/prometheus_endpoint.py", "metrics/server_counters.py",
    }  # fmt: skip
    assert users == {"cli/bundle_commands.py"}


def test_an_answer_that_comes_byte_by_byte_is_given_up(monkeypatch):
    """Each byte would start the time-out of a socket anew."""
    import socket

    from torchwatt.carbon import electricity_maps_api

    monkeypatch.setattr(electricity_maps_api, "OVERALL_S", 0.5)
    given_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            link, _ = listening.accept()
            with link:
                while not given_up.wait(0.05):
                    link.sendall(b"H")

        serving = threading.Thread(target=drip, daemon=True)
        serving.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(FactorError, match=r"gave no answer: not within 0.5 s"):
            fetch_hours([HOUR], zone="FR", token="t", at=NOON, url=url)  # noqa: S106  of nobody
        given_up.set()  # the answer ends, and the thread that still reads it
        serving.join()
