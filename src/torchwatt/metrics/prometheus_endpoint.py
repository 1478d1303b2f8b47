"""HTTP endpoint for Prometheus; on the loopback interface by default."""

from __future__ import annotations

import errno
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address, ip_address
from socketserver import TCPServer
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from torchwatt.core.errors import ConfigError, install_command
from torchwatt.metrics.energy_counters import CounterValues, DeviceKey, EnergyCounters, Exporter, RunKey

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


RUN_LABELS = ("run", "project")
DEVICE_LABELS = (*RUN_LABELS, "device", "device_model", "provenance")
LAYER_LABELS = (*RUN_LABELS, "device", "layer", "phase", "provenance", "stage")


class PrometheusCollector:
    """Updates the energy counters at each scrape."""

    def __init__(self, books: EnergyCounters) -> None:
        self._books = books

    def collect(self) -> Iterator[Metric]:
        """Return the metric families with at least one sample."""
        return metric_families(self._books.current_values())


def metric_families(values: CounterValues) -> Iterator[Metric]:
    """Yield metric families with their samples; names end in their unit, those of counters in `_total`."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    sessions = GaugeMetricFamily("torchwatt_sessions", "Runs that are metered now, nested ones not counted")
    sessions.add_metric((), values.sessions)
    yield sessions
    energy = CounterMetricFamily(
        "torchwatt_device_energy_joules", "Energy of a device, since the process began", labels=DEVICE_LABELS
    )
    host = CounterMetricFamily(
        "torchwatt_host_energy_joules", "Energy of the whole machine: contains the devices", labels=DEVICE_LABELS
    )
    for key, joules in values.energy_j.items():
        (host if key.whole_machine else energy).add_metric(_device_labels(key), joules)
    power = GaugeMetricFamily(
        "torchwatt_device_power_watts", "Power of a device, mean since the look before", labels=DEVICE_LABELS
    )
    for key, watts in values.power_w.items():
        if not key.whole_machine:
            power.add_metric(_device_labels(key), watts)
    grams = CounterMetricFamily("torchwatt_gwp_grams", "CO2e in use, location-based", labels=RUN_LABELS)
    for run, value in values.location_g.items():
        grams.add_metric(_run_labels(run), value)
    unpriced = CounterMetricFamily(
        "torchwatt_unpriced_energy_joules", "Energy without a carbon factor", labels=RUN_LABELS
    )
    for run, value in values.unpriced_j.items():
        unpriced.add_metric(_run_labels(run), value)
    layers = CounterMetricFamily(
        "torchwatt_layer_energy_joules", "Energy by layer, of runs that ended", labels=LAYER_LABELS
    )
    for row, joules in values.layers_j.items():
        layers.add_metric((row.run, row.project, row.device, row.layer, row.phase, row.provenance, row.stage), joules)
    yield from (family for family in (energy, host, power, grams, unpriced, layers) if family.samples)


def make_registry(books: EnergyCounters) -> CollectorRegistry:
    """Return a new registry with one collector of `books`."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(PrometheusCollector(books))
    return registry


def _run_labels(run: RunKey) -> tuple[str, str]:
    return run.run, run.project


def _device_labels(key: DeviceKey) -> tuple[str, ...]:
    return (*_run_labels(key.run), key.device, key.model, key.provenance)


LOOPBACK = "127.0.0.1"
MISSING = f"prometheus_client is missing: {install_command('prometheus_client')}"
MAX_CONNECTIONS = 8  # served at a time; a scraper opens one
MAX_CONNECTION_S = 5.0  # from accepting a connection to the end of the response
SPARE_DESCRIPTORS = 64  # of the limit (ulimit -n), reserved for the measured program
# RFC 3986: an address of IPv6 in brackets, or a name; then a port.
_HOST = re.compile(r"(?:\[([0-9a-fA-F.]*:[0-9a-fA-F:.]*(?:%25[\w.-]+)?)\]|([^\s/?#@\\:,\[\]]+))(?::\d{0,5})?", re.ASCII)
_ACCEPT_PAUSE_S, _ENDING_PAUSE_S = 0.2, 0.005


class PrometheusEndpoint(Exporter):
    """Exporter that serves Prometheus metrics from a thread."""

    def __init__(self, port: int, address: str, layers: int, allow_hosts: Sequence[str]) -> None:
        super().__init__(layers)
        try:
            import prometheus_client  # noqa: F401  # raises ImportError if it is not installed
        except ImportError as error:
            raise ConfigError(MISSING) from error
        self.address = address
        self.server = _open_server(port, address, make_registry(self.books), allow_hosts)
        self._thread = Thread(target=self.server.serve_forever, name="torchwatt-prometheus", daemon=True)
        self._thread.start()
        self.books.open()

    @property
    def port(self) -> int:
        """Return the bound port; if 0 was requested, the one that the system chose."""
        return self.server.server_port

    @property
    def url(self) -> str:
        """Return the URL to scrape."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/metrics"

    def _end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(2.0)


def prometheus(
    *, port: int, address: str = LOOPBACK, layers: int = 0, allow_hosts: Sequence[str] = ()
) -> PrometheusEndpoint:  # fmt: skip
    """Serve the runs of this process to Prometheus, until closed.

    Serves at most 8 connections at a time, each for at most 5 s; a newer connection closes the oldest. The last 64 file
    descriptors below the process's limit are never used.

    Args:
        port: TCP port; 0 selects a free one, see `.port` and `.url`.
        address: `127.0.0.1` is reachable from this machine only; `0.0.0.0` from every machine that can reach this one.
        layers: Number of layers with separate series, besides reserved names; the others share one series.
        allow_hosts: Host names to accept in a request's Host header, against DNS rebinding from web pages. The local
            address of the connection is always accepted, and on the loopback interface also `localhost`.

    Raises:
        ConfigError: The port is in use or invalid, or prometheus_client is not installed.
    """
    return PrometheusEndpoint(port, address, layers, allow_hosts)


def _open_server(port: int, address: str, registry: CollectorRegistry, allow_hosts: Sequence[str]) -> _EndpointServer:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65_535:
        raise ConfigError(f"port={port!r}: give a number from 0 to 65535")
    names = (allow_hosts,) if isinstance(allow_hosts, str) else tuple(allow_hosts)
    if bad := [name for name in names if not isinstance(name, str) or not name or parse_host(name) != name.lower()]:
        raise ConfigError(
            f"allow_hosts={bad[0]!r}: give a name or an address without a port, such as node7.example.org"
        )
    try:
        family, _, _, _, socket_address = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        return _EndpointServer(family, socket_address, registry, frozenset(name.lower() for name in names))
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {address}:{port}: {cause}; give another port= (0 takes a free one)"
        ) from error


class _EndpointServer(ThreadingHTTPServer):
    """Serves a bounded number of connections, each in a thread and for a bounded time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16  # these wait in the kernel, without a descriptor of this process

    def __init__(
        self, family: int, where: Any, registry: CollectorRegistry, allow_hosts: frozenset[str]
    ) -> None:  # fmt: skip
        self.address_family = family
        self.registry = registry
        self.allow_hosts = allow_hosts
        self._since: dict[socket.socket, float] = {}
        self._ending: set[socket.socket] = set()
        self._lock = Lock()
        super().__init__(where, _EndpointHandler)

    def server_bind(self) -> None:
        """Bind without the name lookup of `HTTPServer`, whose result is not used."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; if descriptors or memory run out, pause 0.2 s before the next attempt."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                time.sleep(_ACCEPT_PAUSE_S)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002  socketserver's signature
        """Return whether to serve a connection; close the oldest if there are too many."""
        if _is_reserved(request.fileno()):
            return False
        with self._lock:
            if len(self._since) >= MAX_CONNECTIONS:
                self._end(min(self._since, key=self._since.__getitem__))
            self._since[request] = time.monotonic()
        deadline_s = time.monotonic() + MAX_CONNECTION_S
        while len(self._ending) >= MAX_CONNECTIONS and time.monotonic() < deadline_s:
            time.sleep(_ENDING_PAUSE_S)  # for their threads, which then close them
        return len(self._ending) < MAX_CONNECTIONS

    def service_actions(self) -> None:
        """Close connections older than 5 s; called twice a second."""
        with self._lock:
            for request, since_s in list(self._since.items()):
                if time.monotonic() - since_s > MAX_CONNECTION_S:
                    self._end(request)

    def _end(self, request: socket.socket) -> None:
        """Shut a connection down, so that the thread that is blocked on it closes it."""
        del self._since[request]
        self._ending.add(request)
        with suppress(OSError):  # it has ended
            request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._since.pop(request, None)
            self._ending.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error: a client closed its connection, and stderr belongs to the program."""


def _is_reserved(descriptor: int) -> bool:
    """Return whether a new descriptor, the lowest free one, is among the last 64 below the limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and descriptor >= limit - SPARE_DESCRIPTORS


class _EndpointHandler(BaseHTTPRequestHandler):
    """Serves one request; HTTP/1.0, so that the connection ends with the response."""

    server: _EndpointServer
    timeout = MAX_CONNECTION_S
    server_version = "torchwatt"
    sys_version = ""

    def do_GET(self) -> None:
        """Respond with the current metrics."""
        from prometheus_client.exposition import choose_encoder

        if not self._is_for_us():
            self._answer(403, "text/plain", b"this Host is not served: name it with allow_hosts= or --allow-host\n")
            return
        url = urlsplit(self.path)
        if url.path not in {"/", "/metrics"}:
            self._answer(404, "text/plain", b"the numbers are at /metrics\n")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        names = parse_qs(url.query).get("name[]")
        registry = self.server.registry.restricted_registry(names) if names else self.server.registry
        self._answer(200, content_type, encode(registry))

    def _is_for_us(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        host = parse_host(hosts[0]) if len(hosts) == 1 else ""
        if host in self.server.allow_hosts:
            return host != ""
        local = _parse_address(str(self.connection.getsockname()[0]))
        requested = _parse_address(host)
        if local is not None and local.is_loopback:
            return host == "localhost" or (requested is not None and requested.is_loopback)
        return requested is not None and requested == local

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
        """Log nothing: stderr belongs to the measured program."""


def parse_host(header: str) -> str:
    """Return the host of a Host header in lower case, without port and brackets; empty if it is invalid."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).lower() if found else ""


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
