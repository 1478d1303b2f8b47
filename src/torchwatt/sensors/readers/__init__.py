"""Readers of meters: numpy-free, so that the sampler process starts in milliseconds.

A reader is opened from a JSON-serialisable `spec` and reads channels by key. No module of this package may import
`torchwatt.core.meter` (numpy), pandas, codecarbon or torch; a test checks this.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from torchwatt.core.errors import SensorError

_HOMES = {
    "nvml": ("torchwatt.sensors.readers.nvml_reader", "NvmlReader"),
    "rapl": ("torchwatt.sensors.readers.rapl_reader", "RaplReader"),
    "perf": ("torchwatt.sensors.readers.rapl_reader", "PerfReader"),
    "process": ("torchwatt.sensors.readers.host_reader", "ProcessReader"),
    "host": ("torchwatt.sensors.readers.host_reader", "HostReader"),
    "modelled": ("torchwatt.sensors.readers.host_reader", "ModelledReader"),
}


class Reader(Protocol):
    """Reads the meters of one source."""

    def read(self, key: str) -> float:
        """Return the raw value of a channel; NaN before the first value.

        Raises:
            SensorError: The read failed; `code` is the event code.
        """

    def close(self) -> None:
        """Release files and libraries; a second call does nothing."""


class SamplesReader(Reader, Protocol):
    """A reader that also reads a driver's ring buffer of samples."""

    def take(self, key: str) -> list[tuple[int, float]]:
        """Return (monotonic ns, raw value) of the samples since the previous call, in time order.

        Raises:
            SensorError: The read failed; `code` is the event code.
        """


def open_reader(spec: Mapping[str, Any]) -> Reader:
    """Open the reader of a spec, in any process.

    Raises:
        SensorError: The kind is unknown (SENSOR_MISSING), or the meter cannot be opened.
    """
    home = _HOMES.get(spec["kind"])
    if home is None:
        raise SensorError(f"no reader called {spec['kind']!r}; one of {', '.join(_HOMES)}", code="SENSOR_MISSING")
    reader: Reader = getattr(import_module(home[0]), home[1])(spec)
    return reader
