"""Reads how much CPU time the user's process and the whole machine have used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchwatt.sensors.readers.cputime import Kin, Work, family, machine


class ProcessReader:
    """Reads `process/process_cpu` and `process/busy_cpu`, both cumulative CPU seconds. Spec: `pid`."""

    def __init__(self, spec: Mapping[str, Any], kin: Kin | None = None, work: Work | None = None) -> None:
        self._family = kin or family(int(spec["pid"]))
        self._machine = work or machine()

    def read(self, key: str) -> float:
        """Return one of the two, in seconds."""
        return self._machine.busy_s() if key.endswith("/busy_cpu") else self._family.cpu_s()

    def close(self) -> None:
        """Close what is kept open in /proc."""
        self._family.close()
        self._machine.close()
