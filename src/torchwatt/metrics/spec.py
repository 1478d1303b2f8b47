"""Opens exporters from their command-line notation."""

from __future__ import annotations

from collections.abc import Sequence

from torchwatt.core.errors import ConfigError
from torchwatt.metrics.exporter import Exporter

FORMS = "prometheus:PORT, prometheus:ADDRESS:PORT, textfile:FILE.prom or otel"


def named(text: str, allow_hosts: Sequence[str] = ()) -> Exporter:
    """Open an exporter by its command-line notation; `otel` uses the process's global provider.

    `allow_hosts` are passed to `prometheus`.

    Raises:
        ConfigError: The notation is not one of `FORMS`, or the exporter cannot be opened.
    """
    kind, _, argument = text.partition(":")
    if kind == "otel" and not argument:
        from torchwatt.metrics.meter import otel

        return otel("global")
    if kind == "textfile" and argument:
        from torchwatt.metrics.file import textfile

        return textfile(argument)
    address, _, port = argument.rpartition(":")
    if kind == "prometheus" and port.isdecimal() and port.isascii():
        from torchwatt.metrics.endpoint import LOOPBACK, prometheus

        return prometheus(port=int(port), address=address.strip("[]") or LOOPBACK, allow_hosts=allow_hosts)
    raise ConfigError(f"--metrics {text}: give {FORMS}")
