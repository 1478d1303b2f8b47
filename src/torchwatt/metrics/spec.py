"""Exporters as they are named on a command line."""

from __future__ import annotations

from collections.abc import Sequence

from torchwatt.core.errors import ConfigError
from torchwatt.metrics.exporter import Exporter

FORMS = "prometheus:PORT, prometheus:ADDRESS:PORT, textfile:FILE.prom or otel"


def named(text: str, allow_hosts: Sequence[str] = ()) -> Exporter:
    """Open the exporter that a command line names; `otel` is the process's own provider, asked for by that word.

    `allow_hosts` are names under which Prometheus may ask, see `prometheus`.

    Raises:
        ConfigError: There is none of that name, or it cannot be opened.
    """
    kind, _, rest = text.partition(":")
    if kind == "otel" and not rest:
        from torchwatt.metrics.meter import otel

        return otel("global")
    if kind == "textfile" and rest:
        from torchwatt.metrics.file import textfile

        return textfile(rest)
    address, _, port = rest.rpartition(":")
    if kind == "prometheus" and port.isdecimal() and port.isascii():
        from torchwatt.metrics.endpoint import LOOPBACK, prometheus

        return prometheus(port=int(port), address=address.strip("[]") or LOOPBACK, allow_hosts=allow_hosts)
    raise ConfigError(f"--metrics {text}: give {FORMS}")
