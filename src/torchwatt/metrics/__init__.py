"""Live metrics of this process's runs, off unless asked for: OpenTelemetry, Prometheus, or a file for node_exporter.

    with tw.metrics.prometheus(port=9464), tw.profile(model):
        train(model)

Each exporter runs from its call to the end of its `with` block or its `close()`, over any number of runs. Counters are
monotonic over all runs of the process; unknown values are absent, never 0. Modules are imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchwatt.metrics.energy_counters import named
    from torchwatt.metrics.otel_exporter import otel
    from torchwatt.metrics.prometheus_endpoint import prometheus
    from torchwatt.metrics.textfile_exporter import textfile

_HOMES = {
    "named": "torchwatt.metrics.energy_counters",
    "otel": "torchwatt.metrics.otel_exporter",
    "prometheus": "torchwatt.metrics.prometheus_endpoint",
    "textfile": "torchwatt.metrics.textfile_exporter",
}
__all__ = ["named", "otel", "prometheus", "textfile"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
