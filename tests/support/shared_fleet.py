"""A fleet on shared machines, and what its devices really used.

Every device has its millijoules for each second. Runs read its counter; the truth adds up the seconds in which anybody
did, device by device, and knows nothing of bundles, stores and lakes. Some bundles are copies under new ids, some are
broken.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.support.fleet import DAY_NS, FIRST_UNIX_NS, LOCATION, PROJECTS
from torchwatt.audit import write_bundle
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.factor import Impact
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Channel, Meter, SamplerStats
from torchwatt.core.report import Report
from torchwatt.core.terms import Domain

S = 10**9
SECONDS = 3 * 3600
CARDS, PACKAGES = 4, 2
RAPL = 262_143_328_850  # microjoules at which a package's counter wraps
G_PER_KWH = LOCATION.value
START_NS = 5_000 * S
MOST_NS = 50


@dataclass(frozen=True)
class Job:
    """One process: which card of which host it used, and when (seconds of the fleet's day)."""

    number: int
    host: int
    card: int
    start: int
    end: int
    whole_host: bool = False  # metered at the host's plug, and nothing else

    @property
    def devices(self) -> tuple[tuple[str, int, int], ...]:
        """Return (kind, host, index) of what it metered, its own memory aside."""
        if self.whole_host:
            return (("node", self.host, 0),)
        return (("gpu", self.host, self.card), *(("cpu", self.host, i) for i in range(PACKAGES)))


class Fleet:
    """Hosts with cards and packages, and the jobs that ran on them."""

    def __init__(self, bundles: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.hosts = max(bundles // 50, 3)
        width = (self.hosts, CARDS + PACKAGES, SECONDS)
        self.used_mj = rng.integers(60_000, 500_000, width)
        self.used_mj[0] = self.used_mj[0, :, :1]  # a host with a meter at its plug draws evenly
        self.before_mj = np.concatenate(
            (np.zeros((*width[:2], 1), dtype=np.int64), np.cumsum(self.used_mj, axis=2)), axis=2
        )
        self.origin_mj = rng.integers(10**6, 10**9, width[:2])
        self.jobs = [self._job(number, rng) for number in range(bundles)]
        self.clones = sorted(rng.choice(bundles, bundles // 50, replace=False).tolist())

    def _job(self, number: int, rng: np.random.Generator) -> Job:
        start = int(rng.integers(0, SECONDS - 400))
        whole_host = number % 97 == 5
        host = 0 if whole_host else int(rng.integers(0, self.hosts))
        return Job(number, host, int(rng.integers(0, CARDS)), start, start + int(rng.integers(20, 400)), whole_host)

    def truth(self, numbers: set[int]) -> dict[str, float]:
        """Return the joules of each kind of device that these jobs metered, each second once, and of their memory.

        What the plug of a host counted is the plug's, whatever else was metered behind it.
        """
        seen: dict[tuple[str, int, int], np.ndarray] = defaultdict(lambda: np.zeros(SECONDS, dtype=bool))
        jobs = [job for job in self.jobs if job.number in numbers]
        for job in jobs:
            for device in job.devices:
                seen[device][job.start : job.end] = True
        plug, nothing = seen["node", 0, 0], np.zeros(SECONDS, dtype=bool)
        ram_j = 0.0
        for job in jobs:
            taken = (nothing if job.host else plug)[job.start : job.end]
            ram_j += 0.0 if job.whole_host else ram_w(job) * float((~taken).sum())
        joules = {"gpu": 0, "cpu": 0, "node": 0}
        for (kind, host, index), when in seen.items():
            if kind == "node":
                joules[kind] += int(self.used_mj[0][:, when].sum())
            else:
                alone = when & ~plug if host == 0 else when
                joules[kind] += int(self.used_mj[host, row(kind, index)][alone].sum())
        return {**{kind: millijoules / 1e3 for kind, millijoules in joules.items()}, "ram": ram_j}

    def report(self, job: Job, run_id: str) -> Report:
        """Return what the process would report."""
        parts = [self._part(job, *device) for device in job.devices]
        if not job.whole_host:
            joules = ram_w(job) * (job.end - job.start)
            parts.append((meter("ram", 0, job.host, "process", measured=False), joules, None))
        # Two processes never take the same nanoseconds. Few of them: the truth knows whole seconds, and what a device
        # used in the nanoseconds beyond is a difference from it for each pair of jobs that overlap.
        duration_ns = (job.end - job.start) * S + job.number % MOST_NS
        ledgers = tuple(ledger(m, j, raw, duration_ns) for m, j, raw in parts)
        total_j = sum(found.energy_j for found in ledgers)
        impact = Impact(
            "run", "gwp", "usage", total_j / 3.6e6 * G_PER_KWH, "g{CO2e}", "energy_j/3.6e6*grid_gwp",
            (LOCATION.factor_id,), "derived", "modelled",
        )  # fmt: skip
        machine = f"boot-{job.host}"
        return Report(
            run_id=run_id, name=f"job {job.number}", status="complete", start_ns=START_NS,
            end_ns=START_NS + duration_ns, start_unix_ns=FIRST_UNIX_NS // DAY_NS * DAY_NS + job.start * S,
            ledgers=ledgers, curves=tuple(curve(found, duration_ns) for found in ledgers),
            meters=tuple(m for m, _, _ in parts), units={"token": 100.0}, factors=(LOCATION,), impacts=(impact,),
            sampler=SamplerStats("process"),
            software={"torchwatt": "0.1.0", "os": "Linux", "machine": machine, "process": f"{machine}/{job.number}/1"},
        )  # fmt: skip

    def _part(
        self, job: Job, kind: str, host: int, index: int
    ) -> tuple[Meter, float, tuple[int, int, int, int] | None]:
        if kind == "node":
            used_mj = int(self.used_mj[host][:, job.start : job.end].sum())
            return meter(kind, 0, host, "device", measured=True), used_mj / 1e3, None
        at = row(kind, index)
        scale = 1 if kind == "gpu" else 1000  # a package counts microjoules and wraps
        start, end = (int(self.origin_mj[host, at] + self.before_mj[host, at, t]) * scale for t in (job.start, job.end))
        modulus = 0 if kind == "gpu" else RAPL
        found = (start, end, 0, 0) if not modulus else (start % RAPL, end % RAPL, end // RAPL - start // RAPL, RAPL)
        return meter(kind, index, host, "device", measured=True), (end - start) / scale / 1e3, found


def row(kind: str, index: int) -> int:
    return index if kind == "gpu" else CARDS + index


def ram_w(job: Job) -> float:
    return 2.0 + job.number % 7


def meter(kind: str, index: int, host: int, scope: str, *, measured: bool) -> Meter:
    """Return a meter; a process sees its card as gpu:0 whichever it is, and some hosts give no UUID."""
    domain = Domain(kind, None if kind in {"ram", "node"} else 0 if kind == "gpu" else index)
    quantity = ("energy", "counter", "J") if measured and kind != "node" else ("power", "power", "W")
    scale = {"gpu": 1e-3, "cpu": 1e-6}.get(kind, 1.0)
    sensor = {"gpu": "nvml_energy_counter", "cpu": "rapl", "node": "plug"}.get(kind, "ram_model")
    channel = Channel(domain, *quantity, scale, S // 10, sensor, RAPL if kind == "cpu" else None)
    name = {"pci_bus_id": f"0000:{index:02}:00.0"} if host % 10 == 3 else {"uuid": f"GPU-{host:06}-{index}"}
    facts = tuple(name.items()) if kind == "gpu" else ()
    return Meter(domain, (channel,), "measured" if measured else "modelled", scope, kind, facts=facts)


def ledger(of: Meter, joules: float, raw: tuple[int, int, int, int] | None, duration_ns: int) -> Ledger:
    """Return the books of a device: all of it unattributed."""
    measured = of.provenance == "measured"
    method, known = ("counter" if raw else "power_integral", "measured") if measured else ("load_model", "modelled")
    layer = ("time_share", "apportioned") if measured else ("load_model", "modelled")
    seconds = duration_ns / S
    entry = Entry(of.domain, "(unattributed)", "other", joules, None, None, None, None, seconds, 1, *layer)
    found = Ledger(of.domain, joules, (entry,), method, known, seconds, seconds, 0.5)
    if raw is None:
        return found
    unit_j = of.channels[0].scale
    return replace(
        found, counter_start_raw=raw[0], counter_end_raw=raw[1], counter_unit_j=unit_j, counter_wraps=raw[2]
    )  # fmt: skip


def curve(of: Ledger, duration_ns: int) -> EnergyCurve:
    t_ns = START_NS + np.linspace(0, duration_ns, 4).astype(np.int64)
    return EnergyCurve(of.domain, t_ns, np.linspace(0, of.energy_j, 4), of.method, of.provenance, 0.5)


def run_id(number: int, copy: int = 0) -> str:
    return f"0198f2c1-7a55-7c11-9d{copy:02x}-{number:012x}"


def folder_of(root: Path, number: int, copy: int = 0) -> Path:
    return root / PROJECTS[(number + copy) % len(PROJECTS)] / run_id(number, copy)


def write_jobs(fleet: Fleet, root: Path, numbers: range) -> None:
    """Write the bundles of some jobs, and the copies of those that have copies under new ids."""
    for number in numbers:
        for copy in range(4 if number in fleet.clones else 1):
            write_bundle(fleet.report(fleet.jobs[number], run_id(number, copy)), folder_of(root, number, copy))


def resealed(folder: Path) -> None:
    """Write the manifest anew, so that what was changed in the tables is all that is wrong."""
    manifest = folder / "MANIFEST.sha256"
    names = [line.partition("  ")[2] for line in manifest.read_text().splitlines()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    manifest.write_text("".join(lines))


def _edited(folder: Path, name: str, old: bytes, new: bytes) -> None:
    path = folder / name
    content = path.read_bytes()
    assert old in content, (path, old)
    path.write_bytes(content.replace(old, new, 1))


def _flipped(folder: Path) -> None:
    path = folder / "sample.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _another_header(folder: Path) -> None:
    _edited(folder, "layer.csv", b"fqn", b"FQN")
    resealed(folder)


def _still_running(folder: Path) -> None:
    _edited(folder, "run.csv", b",complete,", b",running,")
    resealed(folder)


# Ten ways in which a bundle is broken; none of them may enter the lake.
BREAKS = (
    lambda folder: (folder / "MANIFEST.sha256").unlink(),
    lambda folder: (folder / "MANIFEST.sha256").write_bytes(b""),
    lambda folder: (folder / "device.csv").unlink(),
    lambda folder: os.truncate(folder / "layer.csv", (folder / "layer.csv").stat().st_size // 2),
    lambda folder: _edited(folder, "device.csv", b"measured", b"modelled"),
    _flipped,
    lambda folder: os.truncate(folder / "sample.parquet", 100),
    _another_header,
    _still_running,
    lambda folder: shutil.copyfile(folder / "window.csv", folder / "rank.csv"),
)


def break_some(fleet: Fleet, root: Path, every: int) -> dict[int, Path]:
    """Break one bundle of so many, in turn in each way; no original of a copy and no copy."""
    found = {}
    for way, number in enumerate(n for n in range(7, len(fleet.jobs), every) if n not in fleet.clones):
        folder = folder_of(root, number)
        BREAKS[way % len(BREAKS)](folder)
        found[number] = folder
    return found


MAKE = """
import os, sys
from pathlib import Path
os.fsync = lambda descriptor: None
from tests.support.shared_fleet import Fleet, write_jobs
write_jobs(Fleet(int(sys.argv[2])), Path(sys.argv[1]), range(int(sys.argv[3]), int(sys.argv[4])))
"""


def make_bundles(root: Path, bundles: int, processes: int = 2) -> tuple[Fleet, dict[int, Path]]:
    """Write the bundles of a fleet and break one in fifty; return the fleet and the broken ones."""
    edges = [bundles * i // processes for i in range(processes + 1)]
    parts = [
        subprocess.Popen([sys.executable, "-c", MAKE, root, str(bundles), str(lo), str(hi)])
        for lo, hi in pairwise(edges)
    ]
    assert [part.wait() for part in parts] == [0] * processes
    fleet = Fleet(bundles)
    return fleet, break_some(fleet, root, every=50)


def ingest_at_once(lake: Path, root: Path, writers: int = 4) -> list[tuple[str, set[str]]]:
    """Ingest all bundles with several programs at once; return what each said, and which bundles it refused."""
    command = [sys.executable, "-m", "torchwatt", "fleet", "ingest", str(lake), str(root), "--jobs", "1"]
    started = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(writers)
    ]
    told = [one.communicate() for one in started]
    return [
        (out.strip(), {s.split(": ")[0].removeprefix("refused ") for s in err.splitlines() if s.startswith("refused ")})
        for out, err in told
    ]
