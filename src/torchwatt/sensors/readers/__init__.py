"""What looks at a meter: numpy-free, so that the sampler process starts in milliseconds.

A reader is built from a JSON-able `spec` and answers `read(key)`. Nothing in this package may import
`torchwatt.core.meter` (numpy), pandas, codecarbon or torch; a test holds it to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from torchwatt.core.errors import SensorError

_HOMES = {
    "nvml": ("torchwatt.sensors.readers.nvml", "NvmlReader"),
    "rapl": ("torchwatt.sensors.readers.rapl", "RaplReader"),
    "perf": ("torchwatt.sensors.readers.perf", "PerfReader"),
    "process": ("torchwatt.sensors.readers.process", "ProcessReader"),
    "host": ("torchwatt.sensors.readers.host", "HostReader"),
    "modelled": ("torchwatt.sensors.readers.modelled", "ModelledReader"),
}


class Reader(Protocol):
    """Looks at the meters of one source."""

    def read(self, key: str) -> float:
        """Return the raw value of a channel key; NaN where there is nothing to say yet.

        Raises:
            SensorError: With the event code that says why.
        """

    def close(self) -> None:
        """Let go of files and libraries; safe to call twice."""


class SamplesReader(Reader, Protocol):
    """Looks at a driver that keeps a ring of samples, too."""

    def take(self, key: str) -> list[tuple[int, float]]:
        """Return (monotonic ns, raw value) of what was sampled since the last look, in time order.

        Raises:
            SensorError: With the event code that says why.
        """


def open_reader(spec: Mapping[str, Any]) -> Reader:
    """Build the reader that a spec describes, in whatever process this is.

    Raises:
        SensorError: If the kind is unknown (SENSOR_MISSING) or the meter cannot be opened.
    """
    home = _HOMES.get(spec["kind"])
    if home is None:
        raise SensorError(f"no reader called {spec['kind']!r}; one of {', '.join(_HOMES)}", code="SENSOR_MISSING")
    reader: Reader = getattr(import_module(home[0]), home[1])(spec)
    return reader
