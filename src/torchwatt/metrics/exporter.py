"""Base class of the exporters."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from torchwatt.core.errors import ConfigError
from torchwatt.metrics.energy_counters import EnergyCounters

MAX_LAYERS = 200


class Exporter:
    """Owns the energy counters of the process; ended by `close` or the end of its `with` block."""

    def __init__(self, layers: int) -> None:
        if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers <= MAX_LAYERS:
            raise ConfigError(f"layers={layers!r}: give how many layers get a series, from 0 to {MAX_LAYERS}")
        self.books = EnergyCounters(layers)
        self.closed = False

    def close(self) -> None:
        """Stop exporting; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self._end()
            self.books.close()

    def _end(self) -> None:
        """Stop the exporter's threads and servers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


EXPORTER_FORMS = "prometheus:PORT, prometheus:ADDRESS:PORT, textfile:FILE.prom or otel"


def named(text: str, allow_hosts: Sequence[str] = ()) -> Exporter:
    """Open an exporter by its command-line notation; `otel` uses the process's global provider.

    `allow_hosts` are passed to `prometheus`.

    Raises:
        ConfigError: The notation is not one of `EXPORTER_FORMS`, or the exporter cannot be opened.
    """
    kind, _, argument = text.partition(":")
    if kind == "otel" and not argument:
        from torchwatt.metrics.otel_exporter import otel

        return otel("global")
    if kind == "textfile" and argument:
        from torchwatt.metrics.textfile_exporter import textfile

        return textfile(argument)
    address, _, port = argument.rpartition(":")
    if kind == "prometheus" and port.isdecimal() and port.isascii():
        from torchwatt.metrics.prometheus_endpoint import LOOPBACK, prometheus

        return prometheus(port=int(port), address=address.strip("[]") or LOOPBACK, allow_hosts=allow_hosts)
    raise ConfigError(f"--metrics {text}: give {EXPORTER_FORMS}")
