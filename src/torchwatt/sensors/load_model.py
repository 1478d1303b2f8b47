"""CPU and RAM power by models, for machines that meter neither; and the CPU clock of the user's process."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchwatt.core.meter import Channel, Meter
from torchwatt.core.terms import CUDA_LIBRARY, Domain
from torchwatt.sensors.protocol import MeteredSource
from torchwatt.sensors.readers.kernel_files import read_head

# codecarbon.core.cpu.DEFAULT_POWER_PER_CORE (3.3.2): its constant for unknown CPUs, W per hardware thread.
ASSUMED_W_PER_THREAD = 4.0
TABLE_SOURCE = "codecarbon data/hardware/cpu_power.csv"
_LARGEST_CPUINFO = 1 << 24  # bytes: 8192 CPUs have 12 MB
_NAME_NOISE = re.compile(
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


def read_cpu_info(path: str = "/proc/cpuinfo") -> CpuInfo:
    """Read the machine's CPUs; an unreadable file gives one thread of an unknown model."""
    try:
        text = read_head(Path(path), _LARGEST_CPUINFO).decode("utf-8", "replace")
    except OSError:
        text = ""
    fields = [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in text.splitlines())]
    model = next((v for k, v in fields if k == "model name"), "unknown CPU")
    sockets = len({v for k, v in fields if k == "physical id"}) or 1
    threads = sum(k == "processor" for k, _ in fields) or 1
    virtual = any(k == "flags" and " hypervisor" in v for k, v in fields)
    return CpuInfo(model, sockets, threads, virtual)


def normalise_cpu_name(name: str) -> str:
    """Return a CPU's name without trademarks, clocks and core counts, in lower case."""
    return " ".join(_NAME_NOISE.sub(" ", name).lower().split())


def table_power_w(model: str) -> float | None:
    """Return a CPU model's watts from codecarbon's packaged table; None if the table has no such name.

    Uses only `codecarbon.input.DataSource`, not codecarbon's tracker.
    """
    try:
        from codecarbon.input import DataSource

        source: Any = DataSource  # codecarbon is not typed
        with Path(source().cpu_power_path).open(encoding="utf-8") as file:
            tdp = {normalise_cpu_name(row["Name"]): row["TDP"] for row in csv.DictReader(file)}.get(
                normalise_cpu_name(model)
            )
    except (ImportError, OSError, KeyError):
        return None
    try:
        return float(tdp) if tdp is not None else None
    except ValueError:  # a few rows have words instead of numbers
        return None


def nameplate_power(info: CpuInfo, watts: float | None) -> Nameplate:
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


POWER_PERIOD_NS = 100_000_000
CLOCK_PERIOD_NS = 100_000_000  # as for the models: one wake-up reads both
GAUGE_PERIOD_NS = 1_000_000_000
LIBRARY_PERIOD_NS = 2_000_000_000  # the list of a large process's files takes a millisecond
CPU, RAM, PROCESS = Domain("cpu"), Domain("ram"), Domain("process")
CPU_ACCURACY = (-0.4, 0.4)
CPU_SOURCE = "assumed ±40 %: Fischer 2025, arXiv 2509.22092 finds up to 40 % for models of load"
RAM_ACCURACY = (-0.5, 1.0)
RAM_SOURCE = "assumed -50/+100 %: no published error; wrong by design for big servers"
WINDOW_NOTE = "each power reading is the mean since the previous reading"


def process_source(pid: int | None = None, *, cuda: bool = False) -> MeteredSource:
    """Return the source of CPU time gauges, which distinguish an idle machine from a busy one; always available.

    `process/process_cpu`: CPU seconds of the process and its children. `process/children_cpu`: of its children only.
    `process/busy_cpu`: of the whole machine. With `cuda`, `process/cuda_library`: whether one of them has loaded CUDA.
    """
    channels = (
        Channel(PROCESS, "process_cpu", "gauge", "s", 1.0, CLOCK_PERIOD_NS, "proc"),
        Channel(PROCESS, "children_cpu", "gauge", "s", 1.0, CLOCK_PERIOD_NS, "proc"),
        Channel(PROCESS, "busy_cpu", "gauge", "s", 1.0, GAUGE_PERIOD_NS, "proc"),
        *((Channel(PROCESS, CUDA_LIBRARY, "gauge", "1", 1.0, LIBRARY_PERIOD_NS, "proc"),) if cuda else ()),
    )
    pid = pid or os.getpid()
    meter = Meter(PROCESS, channels, "measured", "process", f"process {pid}", facts=(("pid", str(pid)),))
    return MeteredSource((meter,), {"kind": "process", "pid": pid})


def modelled_source(
    *, cpu: bool = True, ram: bool = True, pid: int | None = None, info: CpuInfo | None = None
) -> MeteredSource | None:
    """Return models of this process's share of CPU and RAM power; None if neither is requested.

    The nameplate table is read in the user's process; the sampler gets only the watts.
    """
    if not (cpu or ram):
        return None
    info = info or read_cpu_info()
    plate = nameplate_power(info, table_power_w(info.model))
    meters = ((_cpu_meter(info, plate),) if cpu else ()) + ((_ram_meter(),) if ram else ())
    spec = {"kind": "modelled", "pid": pid or os.getpid(), "nameplate_w": plate.watts, "cpus": info.threads}
    return MeteredSource(meters, spec)


def _cpu_meter(info: CpuInfo, plate: Nameplate) -> Meter:
    power = Channel(CPU, "power", "power", "W", 1.0, POWER_PERIOD_NS, "tdp_model")
    gauges = (
        Channel(CPU, "utilization", "gauge", "1", 1.0, GAUGE_PERIOD_NS, "proc"),
        Channel(CPU, "process_cpu", "gauge", "s", 1.0, GAUGE_PERIOD_NS, "proc"),
    )
    share = "P(load) x this process's CPU time / busy CPU time: all processes add up to P, an idle one gets 0"
    return Meter(
        CPU,
        (power, *gauges),
        "modelled",
        "process",
        info.model,
        accuracy_rel=CPU_ACCURACY,
        accuracy_source=CPU_SOURCE,
        notes=(*plate.notes, share, WINDOW_NOTE),
        facts=(
            ("nameplate_w", repr(plate.watts)),
            ("nameplate_source", plate.source),
            ("threads", str(info.threads)),
            ("sockets", str(info.sockets)),
            ("curve", "Teads 2021: 0.12, 0.32, 0.75, 1.02 of nameplate at 0, 10, 50, 100 % load"),
        ),
    )


def _ram_meter() -> Meter:
    return Meter(
        RAM,
        (
            Channel(RAM, "power", "power", "W", 1.0, POWER_PERIOD_NS, "ram_model"),
            Channel(RAM, "rss", "gauge", "By", 1.0, GAUGE_PERIOD_NS, "proc"),
        ),
        "modelled",
        "process",
        "0.375 W per GB resident",
        accuracy_rel=RAM_ACCURACY,
        accuracy_source=RAM_SOURCE,
        notes=("this process's resident memory x 0.375 W/GB; shared pages count in each child",),
        facts=(("w_per_gb", "0.375"),),
    )
