"""The watts printed on a CPU, from codecarbon's table of 4,900 models."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchwatt.sensors.readers.files import head_of

# codecarbon.core.cpu.DEFAULT_POWER_PER_CORE (3.3.2): its constant for unknown CPUs, W per hardware thread.
ASSUMED_W_PER_THREAD = 4.0
TABLE_SOURCE = "codecarbon data/hardware/cpu_power.csv"
_LARGEST_CPUINFO = 1 << 24  # bytes: 8192 CPUs have 12 MB
_NOISE = re.compile(
    r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*$|\bwith\b.*$|\b\w+-core\b|\b\d+(st|nd|rd|th) gen\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """Contents of /proc/cpuinfo: model name, sockets, logical CPUs, and whether the machine is virtual."""

    model: str
    sockets: int
    threads: int
    virtual: bool


@dataclass(frozen=True, slots=True)
class Nameplate:
    """Watts of all CPUs of the machine at full load, with source and notes."""

    watts: float
    source: str
    notes: tuple[str, ...] = ()


def cpu_info(path: str = "/proc/cpuinfo") -> CpuInfo:
    """Read the machine's CPUs; an unreadable file gives one thread of an unknown model."""
    try:
        text = head_of(Path(path), _LARGEST_CPUINFO).decode("utf-8", "replace")
    except OSError:
        text = ""
    fields = [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in text.splitlines())]
    model = next((v for k, v in fields if k == "model name"), "unknown CPU")
    sockets = len({v for k, v in fields if k == "physical id"}) or 1
    threads = sum(k == "processor" for k, _ in fields) or 1
    virtual = any(k == "flags" and " hypervisor" in v for k, v in fields)
    return CpuInfo(model, sockets, threads, virtual)


def normal(name: str) -> str:
    """Return a CPU's name without trademarks, clocks and core counts, in lower case."""
    return " ".join(_NOISE.sub(" ", name).lower().split())


def table_w(model: str) -> float | None:
    """Return a CPU model's watts from codecarbon's packaged table; None if the table has no such name.

    Uses only `codecarbon.input.DataSource`, not codecarbon's tracker.
    """
    try:
        from codecarbon.input import DataSource

        source: Any = DataSource  # codecarbon is not typed
        with Path(source().cpu_power_path).open(encoding="utf-8") as file:
            tdp = {normal(row["Name"]): row["TDP"] for row in csv.DictReader(file)}.get(normal(model))
    except (ImportError, OSError, KeyError):
        return None
    try:
        return float(tdp) if tdp is not None else None
    except ValueError:  # a few rows have words instead of numbers
        return None


def nameplate(info: CpuInfo, watts: float | None) -> Nameplate:
    """Return the machine's nameplate power from the table's watts for one socket.

    A virtual machine has only some of the CPU's threads, but the table's watts are for all of them: there the result is
    at most the constant per visible thread.
    """
    assumed_w = ASSUMED_W_PER_THREAD * info.threads
    if watts is None:
        note = f"nameplate assumed: {info.model!r} is not in the table; {ASSUMED_W_PER_THREAD:g} W per thread"
        return Nameplate(assumed_w, "codecarbon constant", (note,))
    total_w = watts * info.sockets
    if info.virtual and assumed_w < total_w:
        note = f"nameplate assumed: {info.threads} threads of a {watts:g} W CPU seen; {ASSUMED_W_PER_THREAD:g} W each"
        return Nameplate(assumed_w, "codecarbon constant", (note,))
    return Nameplate(total_w, TABLE_SOURCE)
