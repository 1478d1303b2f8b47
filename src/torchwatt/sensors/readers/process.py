"""Reads how much CPU time the user's process and the whole machine have used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchwatt.sensors.readers.cputime import family, machine


class ProcessReader:
    """Reads `process/process_cpu` and `process/busy_cpu`, both cumulative CPU seconds. Spec: `pid`."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._family = family(int(spec["pid"]))
        self._machine = machine()

    def read(self, key: str) -> float:
        """Return one of the two, in seconds."""
        return self._machine.busy_s() if key.endswith("/busy_cpu") else self._family.cpu_s()

    def close(self) -> None:
        """Close /proc/stat."""
        self._machine.close()
