"""Live metrics of this process's runs, off unless asked for: OpenTelemetry, Prometheus, or a file for node_exporter.

    with tw.metrics.prometheus(port=9464), tw.profile(model):
        train(model)

Each begins when it is called and ends with its block or its `close()`; many runs may begin and end meanwhile. Counters
only grow, over all runs of the process; what is unknown is absent, never 0. Loaded at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchwatt.metrics.endpoint import prometheus
    from torchwatt.metrics.file import textfile
    from torchwatt.metrics.meter import otel
    from torchwatt.metrics.spec import named

_HOMES = {"named": "spec", "otel": "meter", "prometheus": "endpoint", "textfile": "file"}
__all__ = ["named", "otel", "prometheus", "textfile"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
