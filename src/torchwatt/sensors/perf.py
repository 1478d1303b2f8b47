"""Finds RAPL counters through perf, for machines where powercap is not readable."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, Meter, Unavailable
from torchwatt.core.terms import Domain
from torchwatt.sensors.protocol import Discovery, MeteredSource, read_cost_s
from torchwatt.sensors.rapl import DRAM_SOURCE, PACKAGE_ACCURACY, PACKAGE_SOURCE, PERIOD_NS
from torchwatt.sensors.readers import Reader
from torchwatt.sensors.readers.files import head_of
from torchwatt.sensors.readers.perf import PerfReader

DEFAULT_ROOT = "/sys/bus/event_source/devices/power"
FIX = (
    "sudo sysctl kernel.perf_event_paranoid=0, or setcap cap_perfmon=ep on the python binary; "
    "know of the PLATYPUS side channel (CVE-2020-8694)"
)
_MOST_CPUS = 2**16  # CONFIG_NR_CPUS is 8192 at most
_EVENTS = {"cpu": "energy-pkg", "dram": "energy-ram"}


def parse_cpus(text: str) -> list[int]:
    """Return the CPUs of a kernel CPU list such as `0,18` or `0-3` (Documentation/admin-guide/cputopology)."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        begin_text, _, end_text = part.partition("-")
        begin, end = int(begin_text), int(end_text or begin_text)
        if not 0 <= begin <= end < _MOST_CPUS:
            raise ValueError(f"{part[:40]!r} is no range of CPUs")
        cpus += range(begin, end + 1)
    return cpus


def parse_config(text: str) -> int:
    """Return the event number of a sysfs event file such as `event=0x02`."""
    match = re.search(r"event=(0x[0-9a-fA-F]+|\d+)", text)
    if match is None:
        raise SensorError(f"perf: no event number in {text!r}", code="NOT_SUPPORTED")
    return int(match[1][:18], 16 if match[1].startswith("0x") else 10)


def power_events(root: Path) -> dict[str, tuple[list[int], float]]:
    """Return the events: domain -> ([PMU type, config, CPU], joules per step); one CPU per socket, from the cpumask.

    Raises:
        SensorError: The folder is not as in Documentation/ABI/testing/sysfs-bus-event_source-devices-events of Linux.
    """
    try:
        pmu_type = int(head_of(root / "type"))
        cpus = parse_cpus(head_of(root / "cpumask").decode("ascii"))
        events: dict[str, tuple[list[int], float]] = {}
        for kind, name in _EVENTS.items():
            if (root / "events" / name).is_file():
                config = parse_config(head_of(root / "events" / name).decode("ascii"))
                scale = float(head_of(root / "events" / f"{name}.scale"))
                if not 0 < scale < 1:
                    raise ValueError(f"{scale!r} joules a step")  # noqa: TRY301  # reported with the folder below
                events |= {f"{kind}:{n}": ([pmu_type, config, cpu], scale) for n, cpu in enumerate(cpus)}
    except (OSError, ValueError) as error:
        raise SensorError(f"perf: cannot understand {root}: {error}", code="NOT_SUPPORTED") from error
    return events


def discover_perf(root: str | os.PathLike[str] | None = None, model: str = "CPU package") -> Discovery:
    """Find package and DRAM energy events; never raises."""
    folder = Path(root or DEFAULT_ROOT)
    if not folder.is_dir():
        reason = f"{folder} does not exist: this kernel or machine has no perf power events"
        return Discovery((), (Unavailable("cpu", reason, "a virtual machine has none; see RAPL"),))
    try:
        events = power_events(folder)
        reader = PerfReader({"events": {f"{domain}/energy": event for domain, (event, _) in events.items()}})
        return _openable(events, reader, model)
    except SensorError as error:
        fix = FIX if error.code == "NO_PERMISSION" else ""
        return Discovery((), (Unavailable("cpu", str(error), fix),))


def _openable(events: Mapping[str, tuple[list[int], float]], reader: Reader, model: str) -> Discovery:
    try:
        call_s = {f"{domain}/energy": read_cost_s(reader, f"{domain}/energy") for domain in events}
    finally:
        reader.close()
    meters = tuple(_meter(Domain.parse(domain), scale, model) for domain, (_, scale) in events.items())
    spec = {"kind": "perf", "events": {f"{domain}/energy": event for domain, (event, _) in events.items()}}
    # A perf counter starts at 0 when it is opened: reads of the user's process have another origin, hence edges=False.
    sources = (MeteredSource(meters, spec, call_s, edges=False),) if meters else ()
    return Discovery(sources)


def _meter(domain: Domain, scale_j: float, model: str) -> Meter:
    package = domain.kind == "cpu"
    return Meter(
        domain,
        (Channel(domain, "energy", "counter", "J", scale_j, PERIOD_NS, "rapl_perf"),),  # 64 bits: never wraps
        "measured",
        "device",
        model,
        accuracy_rel=PACKAGE_ACCURACY if package else None,
        accuracy_source=PACKAGE_SOURCE if package else DRAM_SOURCE,
        notes=("read through perf; no readings at the ends of a run",),
        facts=(("driver", "perf power"),),
    )
