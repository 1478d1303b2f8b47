"""An address for Prometheus to scrape; on this machine only, unless asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchwatt.core.errors import ConfigError
from torchwatt.metrics.exporter import Exporter
from torchwatt.metrics.families import registry_of

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer

LOOPBACK = "127.0.0.1"
MISSING = "prometheus_client is missing: pip install 'torchwatt[prometheus]'"


class Endpoint(Exporter):
    """A server in a thread."""

    def __init__(self, port: int, address: str, layers: int) -> None:
        super().__init__(layers)
        self.server, self._thread = _serve(port, address, self)
        self.address = address
        self.books.open()

    @property
    def port(self) -> int:
        """Return the port, also where 0 was asked for."""
        return self.server.server_port

    @property
    def url(self) -> str:
        """Return what to scrape."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/metrics"

    def _end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(2.0)


def prometheus(*, port: int, address: str = LOOPBACK, layers: int = 0) -> Endpoint:
    """Serve the runs of this process to Prometheus, until closed.

    Args:
        port: Where; 0 takes a free one, see `.port` and `.url`.
        address: `127.0.0.1` cannot be reached from other machines; `0.0.0.0` can, by everybody who can reach this one.
        layers: How many layers get a series of their own (reserved ones come on top); the rest is one series.

    Raises:
        ConfigError: The port is taken or impossible, or prometheus_client is not installed.
    """
    return Endpoint(port, address, layers)


def _serve(port: int, address: str, exporter: Exporter) -> tuple[WSGIServer, Thread]:
    try:
        from prometheus_client import start_http_server
    except ImportError as error:
        raise ConfigError(MISSING) from error
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65_535:
        raise ConfigError(f"port={port!r}: give a number from 0 to 65535")
    try:
        return start_http_server(port, address, registry_of(exporter.books))
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {address}:{port}: {why}; give another port= (0 takes a free one)"
        ) from error
