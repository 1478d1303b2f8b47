"""Reads powercap energy counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.sensors.readers.files import KeptFile


class RaplReader:
    """Reads `energy_uj` files named in `spec["files"]`: key -> path. Raw unit: microjoules."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._files = {key: KeptFile(path) for key, path in spec["files"].items()}

    def read(self, key: str) -> float:
        """Return the counter in microjoules."""
        file = self._files[key]
        text = file.read(32)
        if not text.strip().isdigit():  # `int` accepts signs, underscores, and digits of other scripts
            raise SensorError(f"{key}: {file.path} contains {text!r}, not a number of microjoules")
        return float(int(text))

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
