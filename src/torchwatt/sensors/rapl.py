"""Finds CPU packages and DRAM metered by Linux powercap."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, Meter, Unavailable
from torchwatt.core.terms import Domain
from torchwatt.sensors.protocol import Discovery, MeteredSource, read_cost_s
from torchwatt.sensors.readers import Reader
from torchwatt.sensors.readers.kernel_files import read_head
from torchwatt.sensors.readers.rapl_reader import PerfReader, RaplReader

DEFAULT_ROOT = "/sys/class/powercap"
ROOT_VARIABLE = "TORCHWATT_POWERCAP_ROOT"
PERIOD_NS = 5_000_000  # resolves layers of 20 ms; doubled if the counter changes at almost every read
# Khan et al., "RAPL in Action", TOMPECS 3(2), 2018: package power follows a wall meter closely, and short
# intervals carry more than 5 %. DRAM: Desrochers, Paradis, Weaver, MEMSYS 2016 find a constant offset.
PACKAGE_ACCURACY = (-0.05, 0.05)
PACKAGE_SOURCE = "±5 %: Khan et al., RAPL in Action, TOMPECS 3(2) 2018 (per interval at >20 reads/s); not calibrated"
DRAM_SOURCE = "unknown: constant offset, worst when idle (Desrochers, Paradis, Weaver, MEMSYS 2016)"
PERMISSION_FIX = (
    "sudo chmod -R a+r /sys/class/powercap/intel-rapl*/ (until reboot), or for good the udev rule "
    'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"; '
    "know that the kernel closed this file against the PLATYPUS side channel (CVE-2020-8694): "
    "whoever can read it can learn about other users' data"
)
ABSENT_FIX = (
    "virtual machines (EC2 and other clouds) do not pass RAPL on, and Docker >= 24.0.7 masks powercap: run on the "
    "host or with --security-opt systempaths=unconfined; on bare metal: modprobe intel_rapl_msr"
)
_ZONE = re.compile(r"(intel-rapl(?:-mmio)?):(\d+)(?::(\d+))?")
_PACKAGE = re.compile(r"package-(\d+)(?:-die-(\d+))?")
# The counters are 32 bits wide (Intel SDM, MSR_PKG_ENERGY_STATUS). The kernel's maximum is (2**32 - 1) units, so
# the counter repeats after one unit more: 61 uJ more for the usual unit of 2**-14 J.
_COUNTER_MAX = 2**32 - 1
_LARGEST_UJ = 2**64
# Two reads of one hardware counter differ by the energy between them; as in codecarbon's find_mirrored_counters, 1 J
# is allowed, and counters up to 1 J count as different.
_MIRROR_UJ = 1_000_000


@dataclass(frozen=True, slots=True)
class PowercapZone:
    """A powercap zone: its path, name, driver, and numbers of package and subzone."""

    path: Path
    name: str
    driver: str
    number: int
    sub: int | None

    @property
    def file(self) -> Path:
        """Return the path of the counter's file."""
        return self.path / "energy_uj"

    @property
    def package(self) -> str | None:
        """Return the package number in the zone's name, None for other zones."""
        match = _PACKAGE.fullmatch(self.name)
        return match[1] if match else None

    def modulus_uj(self) -> int | None:
        """Return the counter's modulus in microjoules; None if the kernel gives no valid maximum."""
        try:
            maximum = int(read_head(self.path / "max_energy_range_uj"))
        except (OSError, ValueError):
            return None
        if not 0 < maximum < _LARGEST_UJ:
            return None
        return maximum + max(1, round(maximum / _COUNTER_MAX))

    def read_uj(self) -> int:
        """Read the counter in microjoules; raise OSError or ValueError if that fails."""
        return int(read_head(self.file))


def powercap_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the powercap folder: the argument, else TORCHWATT_POWERCAP_ROOT, else the kernel's."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def scan_zones(root: Path) -> list[PowercapZone]:
    """Return all zones under a powercap folder, nested or linked flat, each once."""
    zones: dict[Path, PowercapZone] = {}
    todo = [root]
    for folder in todo:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = _ZONE.fullmatch(path.name)
            real = path.resolve()
            if match and real not in zones and (path / "name").is_file():
                name = read_head(path / "name").decode("utf-8", "replace").strip()
                zones[real] = PowercapZone(real, name, match[1], int(match[2]), int(match[3]) if match[3] else None)
                todo.append(real)
            elif folder == root and path.name in {"intel-rapl", "intel-rapl-mmio"}:
                todo.append(real)
    return sorted(zones.values(), key=lambda z: (z.driver, z.number, -1 if z.sub is None else z.sub))


def package_zones(zones: Sequence[PowercapZone], sleep: Callable[[float], None] = time.sleep) -> list[PowercapZone]:
    """Return one zone per hardware counter of packages; no core, uncore or psys, and no counter twice.

    The memory-mapped interface duplicates the packages of the register interface. Dies of one package, or zones of one
    name, may show the same socket-wide counter (codecarbon issue 1274): zones within 1 J of each other in two reads,
    20 ms apart, count as one.
    """
    chosen: list[PowercapZone] = []
    for zone in (z for z in zones if z.package is not None and z.sub is None and z.file.exists()):
        rivals = [z for z in chosen if z.package == zone.package]
        if any(z.driver != zone.driver for z in rivals):
            continue
        if not any(_is_mirror(zone, rival, sleep) for rival in rivals):
            chosen.append(zone)
    return chosen


def _is_mirror(zone: PowercapZone, rival: PowercapZone, sleep: Callable[[float], None]) -> bool:
    try:
        for _ in range(2):
            a_uj, b_uj = rival.read_uj(), zone.read_uj()
            if abs(a_uj - b_uj) > _MIRROR_UJ or max(a_uj, b_uj) <= _MIRROR_UJ:
                return False
            sleep(0.02)
    except (OSError, ValueError):
        return zone.name == rival.name
    return True


def _zone_channel(domain: Domain, zone: PowercapZone) -> Channel:
    return Channel(domain, "energy", "counter", "J", 1e-6, PERIOD_NS, "rapl", zone.modulus_uj())


def _zone_meter(domain: Domain, zone: PowercapZone, model: str) -> Meter:
    package = domain.kind == "cpu"
    return Meter(
        domain,
        (_zone_channel(domain, zone),),
        "measured",
        "device",
        model,
        accuracy_rel=PACKAGE_ACCURACY if package else None,
        accuracy_source=PACKAGE_SOURCE if package else DRAM_SOURCE,
        notes=() if package else ("accuracy unknown: offset differs by machine",),
        facts=(("zone", zone.name), ("driver", zone.driver), ("path", str(zone.file))),
    )


def discover_rapl(root: str | os.PathLike[str] | None = None, model: str = "CPU package") -> Discovery:
    """Find packages (`cpu:<n>`) and their DRAM (`dram:<n>`); never raises."""
    folder = powercap_root(root)
    try:
        zones = scan_zones(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        return Discovery((), (Unavailable("cpu", f"cannot look into {folder}: {error}", PERMISSION_FIX),))
    sockets = package_zones(zones)
    if not sockets:
        reason = f"no RAPL package under {folder}" if folder.is_dir() else f"{folder} does not exist"
        return Discovery((), (Unavailable("cpu", reason, ABSENT_FIX),))
    chosen = [(Domain("cpu", n), zone) for n, zone in enumerate(sockets)]
    chosen += [(Domain("dram", n), sub) for n, zone in enumerate(sockets) for sub in _dram_zones(zones, zone)]
    return _zone_discovery(chosen, model)


def _dram_zones(zones: Sequence[PowercapZone], package: PowercapZone) -> list[PowercapZone]:
    """Return the package's DRAM zone, at most one: below its own zone, else below its twin of the other driver."""
    twins = [z for z in zones if z.sub is None and z.package == package.package and z.path != package.path]
    homes = [(z.driver, z.number) for z in (package, *twins)]
    drams = [z for z in zones if z.sub is not None and z.name == "dram" and (z.driver, z.number) in homes]
    return sorted(drams, key=lambda z: homes.index((z.driver, z.number)))[:1]


def _zone_discovery(chosen: Sequence[tuple[Domain, PowercapZone]], model: str) -> Discovery:
    """Read each counter once; unreadable ones become unavailable domains, with reason and remedy."""
    meters, files, call_s, unavailable = [], {}, {}, []
    for domain, zone in chosen:
        meter = _zone_meter(domain, zone, model)
        key = meter.channels[0].key
        reader = RaplReader({"files": {key: str(zone.file)}})
        try:
            reader.read(key)
            call_s[key] = read_cost_s(reader, key)
        except SensorError as error:
            unavailable.append(Unavailable(str(domain), str(error), _remedy(error)))
            continue
        finally:
            reader.close()
        meters.append(meter)
        files[key] = str(zone.file)
    sources = (MeteredSource(tuple(meters), {"kind": "rapl", "files": files}, call_s),) if meters else ()
    return Discovery(sources, tuple(unavailable))


def _remedy(error: SensorError) -> str:
    return PERMISSION_FIX if error.code == "NO_PERMISSION" else ABSENT_FIX


PERF_ROOT = "/sys/bus/event_source/devices/power"
PERF_FIX = (
    "sudo sysctl kernel.perf_event_paranoid=0, or setcap cap_perfmon=ep on the python binary; "
    "know of the PLATYPUS side channel (CVE-2020-8694)"
)
_MAX_CPUS = 2**16  # CONFIG_NR_CPUS is 8192 at most
_PERF_EVENTS = {"cpu": "energy-pkg", "dram": "energy-ram"}


def parse_cpus(text: str) -> list[int]:
    """Return the CPUs of a kernel CPU list such as `0,18` or `0-3` (Documentation/admin-guide/cputopology)."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        begin_text, _, end_text = part.partition("-")
        begin, end = int(begin_text), int(end_text or begin_text)
        if not 0 <= begin <= end < _MAX_CPUS:
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
        pmu_type = int(read_head(root / "type"))
        cpus = parse_cpus(read_head(root / "cpumask").decode("ascii"))
        events: dict[str, tuple[list[int], float]] = {}
        for kind, name in _PERF_EVENTS.items():
            if (root / "events" / name).is_file():
                config = parse_config(read_head(root / "events" / name).decode("ascii"))
                scale = float(read_head(root / "events" / f"{name}.scale"))
                if not 0 < scale < 1:
                    raise ValueError(f"{scale!r} joules a step")  # noqa: TRY301  # reported with the folder below
                events |= {f"{kind}:{n}": ([pmu_type, config, cpu], scale) for n, cpu in enumerate(cpus)}
    except (OSError, ValueError) as error:
        raise SensorError(f"perf: cannot understand {root}: {error}", code="NOT_SUPPORTED") from error
    return events


def discover_perf(root: str | os.PathLike[str] | None = None, model: str = "CPU package") -> Discovery:
    """Find package and DRAM energy events; never raises."""
    folder = Path(root or PERF_ROOT)
    if not folder.is_dir():
        reason = f"{folder} does not exist: this kernel or machine has no perf power events"
        return Discovery((), (Unavailable("cpu", reason, "a virtual machine has none; see RAPL"),))
    try:
        events = power_events(folder)
        reader = PerfReader({"events": {f"{domain}/energy": event for domain, (event, _) in events.items()}})
        return _perf_discovery(events, reader, model)
    except SensorError as error:
        fix = PERF_FIX if error.code == "NO_PERMISSION" else ""
        return Discovery((), (Unavailable("cpu", str(error), fix),))


def _perf_discovery(events: Mapping[str, tuple[list[int], float]], reader: Reader, model: str) -> Discovery:
    call_s = {}
    try:
        for key in (f"{domain}/energy" for domain in events):
            reader.read(key)
            call_s[key] = read_cost_s(reader, key)
    finally:
        reader.close()
    meters = tuple(_perf_meter(Domain.parse(domain), scale, model) for domain, (_, scale) in events.items())
    spec = {"kind": "perf", "events": {f"{domain}/energy": event for domain, (event, _) in events.items()}}
    # A perf counter starts at 0 when it is opened: reads of the user's process have another origin, hence edges=False.
    sources = (MeteredSource(meters, spec, call_s, edges=False),) if meters else ()
    return Discovery(sources)


def _perf_meter(domain: Domain, scale_j: float, model: str) -> Meter:
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
