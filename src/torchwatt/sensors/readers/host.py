"""Reads the CPU times of the process and the models of CPU and RAM together, with shared reads of /proc."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torchwatt.sensors.readers.cputime import Work, family, machine
from torchwatt.sensors.readers.modelled import ModelledReader
from torchwatt.sensors.readers.process import ProcessReader

# Reading /proc/stat takes 10 us with 2 CPUs and a millisecond with hundreds; its resolution is 10 ms.
_SAME_NS = 1_000_000


class OneLook:
    """The machine's busy time; reads within a millisecond share one value."""

    def __init__(self, source: Work, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._source = source
        self._clock_ns = clock_ns
        self._read_ns: int | None = None
        self._busy_s = 0.0

    def busy_s(self) -> float:
        """Return cumulative busy CPU seconds, at most a millisecond old."""
        now_ns = self._clock_ns()
        if self._read_ns is None or now_ns - self._read_ns > _SAME_NS:
            self._busy_s, self._read_ns = self._source.busy_s(), now_ns
        return self._busy_s

    def close(self) -> None:
        """Close the counter."""
        self._source.close()


class HostReader:
    """Reads the channels of a `process` and a `modelled` spec (`spec["parts"]`) of one process with shared reads."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        parts = {part["kind"]: part for part in spec["parts"]}
        kin, work = family(int(parts["process"]["pid"])), OneLook(machine())
        self._process = ProcessReader(parts["process"], kin, work)
        self._modelled = ModelledReader(parts["modelled"], kin=kin, work=work)

    def read(self, key: str) -> float:
        """Return a channel's raw value, as `ProcessReader` or `ModelledReader`."""
        return (self._process if key.startswith("process/") else self._modelled).read(key)

    def close(self) -> None:
        """Close both readers."""
        self._process.close()
        self._modelled.close()
