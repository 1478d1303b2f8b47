"""Faults of the powercap files, under the real reader."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from tests.faults.registry import Seen, fault
from tests.faults.virtual import Bench, layers, sealed
from torchwatt.core.report import Report
from torchwatt.sensors.protocol import Discovery, MeteredSource
from torchwatt.sensors.rapl import discover_rapl
from torchwatt.sensors.readers import kernel_files

GROUP = "CPU and memory meters (powercap)"
WATTS = {"package-0": 60.0, "dram": 8.0}
RANGE_UJ = 262_143_328_850
START_UJ = 7_000_000_000
RAPL = "tests/sensors/test_sensors_rapl.py::"

Change = Callable[[float, int], str | bytes]  # (seconds, microjoules) -> what the file says


class Tree:
    """A package and its memory, whose counters follow the virtual clock; `says` changes what the package says."""

    def __init__(self, folder: Path, *, start_uj: int = START_UJ, range_uj: str | None = str(RANGE_UJ)) -> None:
        self.root = folder / f"powercap{len(list(folder.iterdir()))}"
        self._start_uj = start_uj
        self.modulus = RANGE_UJ + 61
        self.says: Change = lambda _, uj: str(uj)
        self._files: dict[Path, list[int]] = {}
        self._zones = {"package-0": self.root / "intel-rapl:0", "dram": self.root / "intel-rapl:0" / "intel-rapl:0:0"}
        for name, zone in self._zones.items():
            zone.mkdir(parents=True)
            (zone / "name").write_text(name + "\n")
            if range_uj is not None:
                (zone / "max_energy_range_uj").write_text(range_uj + "\n")
        self.tick(0.0)

    @property
    def file(self) -> str:
        """Return the package's counter."""
        return str(self._zones["package-0"] / "energy_uj")

    def tick(self, seconds: float) -> None:
        """Let the counters say what they would say now."""
        for name, zone in self._zones.items():
            uj = (self._start_uj + round(WATTS[name] * seconds * 1e6)) % self.modulus
            said = self.says(seconds, uj) if name == "package-0" else str(uj)
            self._write(zone / "energy_uj", said if isinstance(said, bytes) else f"{said:<19}\n".encode())

    def _write(self, path: Path, data: bytes) -> None:
        """Write over a kept file, which is cheap; shorten it only where it must be."""
        if path not in self._files:
            self._files[path] = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644), 0]
            weakref.finalize(self, os.close, self._files[path][0])
        fd, size = self._files[path]
        if len(data) != size:
            os.ftruncate(fd, len(data))
            self._files[path][1] = len(data)
        os.pwrite(fd, data, 0)

    def bench(self, seconds: float = 4.0, **more: object) -> Bench:
        """Return a run of so many seconds on these meters, polled at leisure: files are slow to write."""
        found = slower(discover_rapl(self.root))
        assert found.sources, found.unavailable
        return Bench(found, seconds, (self.tick,), **more)  # type: ignore[arg-type]


def slower(found: Discovery) -> Discovery:
    """Poll every 20 ms: the files are written by hand at every look."""
    sources = []
    for source in found.sources:
        meters = tuple(
            replace(m, channels=tuple(replace(c, period_ns=20_000_000) for c in m.channels)) for m in source.meters
        )
        sources.append(MeteredSource(meters, source.spec))
    return replace(found, sources=tuple(sources))


@contextmanager
def failing(path: str, error: int, start_s: float, end_s: float) -> Iterator[Callable[[float], None]]:
    """Let the kernel refuse to read one file for a while, as sysfs does; yields the hook that tells the time."""
    now, real = [0.0], os

    def there(which: str) -> None:
        if which == path and start_s <= now[0] < end_s:
            raise OSError(error, os.strerror(error))

    opened: dict[int, str] = {}

    def opening(which: str, flags: int) -> int:
        there(which)
        fd = real.open(which, flags)
        opened[fd] = which
        return fd

    def pread(fd: int, size: int, at: int) -> bytes:
        there(opened.get(fd, ""))
        return real.pread(fd, size, at)

    names = {name: getattr(os, name) for name in ("close", "O_RDONLY", "O_CLOEXEC")}
    kernel_files.os = SimpleNamespace(open=opening, pread=pread, **names)  # type: ignore[attr-defined]
    try:
        yield lambda seconds: now.__setitem__(0, seconds)
    finally:
        kernel_files.os = real  # type: ignore[attr-defined]


def holds(report: Report, watts: Mapping[str, float] | None = None, rel: float = 0.01) -> None:
    """Check the package's joules against the time for which it was known, and that memory is whole."""
    want = watts or {"cpu:0": WATTS["package-0"], "dram:0": WATTS["dram"]}
    found = {str(led.domain): led for led in report.ledgers}
    assert found["dram:0"].is_whole
    for domain, ledger in found.items():
        truth_j = want[domain] * ledger.known_s
        assert abs(ledger.energy_j - truth_j) <= rel * truth_j + want[domain] * 0.02, (domain, ledger)


def looked(report: Report, *, whole: bool) -> Seen:
    """Check a run whose package failed."""
    holds(report)
    package = next((led for led in report.ledgers if str(led.domain) == "cpu:0"), None)
    assert (package is not None and package.is_whole) == whole, package
    return Seen.of(report)


@fault(
    GROUP,
    "permission lost, the file gone, the device gone, an I/O error: from the middle of the run on",
    sees="`partial`; `NO_PERMISSION` or `SENSOR_LOST`, `unavailable` from then on",
    keeps="the joules up to then; memory, whole",
    proofs=[RAPL + "test_permission_denied_names_the_command_that_helps"],
)
def lost(folder: Path) -> Iterator[Seen]:
    for error in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENODEV, errno.EIO, errno.ENODATA, errno.EMFILE):
        tree = Tree(folder)
        with failing(tree.file, error, 3.0, 99.0) as hook:
            bench = tree.bench()
            bench.hooks = (*bench.hooks, hook)
            yield looked(bench.report(), whole=False)


@fault(
    GROUP,
    "the same for four seconds",
    sees="`SENSOR_LOST`, `SENSOR_BACK`",
    keeps="the whole run: the counter counted on",
    proofs=[RAPL + "test_a_counter_that_breaks_raises_and_comes_back"],
)
def away(folder: Path) -> Iterator[Seen]:
    for error in (errno.EACCES, errno.ENOENT):
        tree = Tree(folder)
        with failing(tree.file, error, 2.0, 6.0) as hook:
            bench = tree.bench(7.0)
            bench.hooks = (*bench.hooks, hook)
            yield looked(bench.report(), whole=True)


@fault(
    GROUP,
    "a file that is empty, holds words, 64 KiB of digits, a negative or a broken number, for a second",
    sees="`SENSOR_ERROR` with what the file held, `SENSOR_BACK`; an impossible number is `COUNTER_JUMP`",
    keeps="the whole run",
)
def content(folder: Path) -> Iterator[Seen]:
    said = (b"", b"\n", b"garbage\n", b"\xff\xfe\x00\x00", b"1 2\n", b"1e9\n", b"0x10\n", b"nan\n", b"7" * 65_536)
    for bad in (*said, b"-5\n", b"9" * 30, str(2**64 - 1).encode()):
        tree = Tree(folder)
        tree.says = lambda s, uj, bad=bad: bad if 2.5 < s < 3.4 else str(uj)
        report = tree.bench().report()
        assert any(event.subject == "cpu:0" for event in report.events), bad
        yield looked(report, whole=True)


@fault(
    GROUP,
    "the counter wraps",
    sees="`COUNTER_WRAP`",
    keeps="the whole run, exactly",
    proofs=[RAPL + "test_a_counter_is_delivered_as_it_stands_across_its_wrap"],
)
def wrap(folder: Path) -> Iterator[Seen]:
    yield looked(Tree(folder, start_uj=RANGE_UJ - 150_000_000).bench().report(), whole=True)


@fault(
    GROUP,
    "it wraps, and `max_energy_range_uj` is missing, empty, 0, negative or too small",
    sees="`COUNTER_RESET`, with the joules that were filled in; the wrong range is not in the bundle",
    keeps="the whole run: the one interval at the power around it",
)
def wrap_of_unknown_range(folder: Path) -> Iterator[Seen]:
    for said in (None, "", "0", "-1", "words", "1", "1000", "7000000001", str(2**63), str(2**64)):
        for start_uj in (RANGE_UJ - 150_000_000, START_UJ):
            report = Tree(folder, start_uj=start_uj, range_uj=said).bench().report()
            yield looked(sealed(report, folder), whole=True)


@fault(
    GROUP,
    "the counter starts again at 0, after a suspend or a new driver",
    sees="`COUNTER_RESET`",
    keeps="the whole run: the one interval at the power around it",
)
def reset(folder: Path) -> Iterator[Seen]:
    tree = Tree(folder)
    tree.says = lambda s, uj: str(uj if s < 3 else round((s - 3) * WATTS["package-0"] * 1e6))
    yield looked(tree.bench().report(), whole=True)


@fault(
    GROUP,
    "the driver is loaded anew: away for four seconds, then the counter starts again at 0",
    sees="`partial`; `SENSOR_LOST`, `SENSOR_BACK`, `COUNTER_LOST`: the joules of that time are unknown",
    keeps="the joules before and after; a layer that ran in between only has no row, a step no joules",
)
def reloaded(folder: Path) -> Iterator[Seen]:
    tree = Tree(folder)
    tree.says = lambda s, uj: str(uj if s < 4 else round((s - 4) * WATTS["package-0"] * 1e6))
    with failing(tree.file, errno.ENODEV, 2.0, 6.0) as hook:
        bench = tree.bench(7.0)
        bench.hooks = (*bench.hooks, hook)
        trace = layers(bench.start_ns, [("before", 0.0, 0.9), ("between", 2.0, 4.0), ("across", 4.5, 6.5)])
        report = bench.report(trace)
    rows = {(str(e.domain), e.fqn) for led in report.ledgers for e in led.entries}
    assert ("cpu:0", "between") not in rows
    assert {("cpu:0", "before"), ("cpu:0", "across"), ("dram:0", "between")} <= rows
    assert [set(step.energy_j) for step in report.steps] == [{"cpu:0", "dram:0"}, {"dram:0"}, {"dram:0"}]
    across = next(e for e in report.ledgers[0].entries if e.fqn == "across")
    assert abs(across.energy_self_j / across.time_self_s - WATTS["package-0"]) < 2  # of the time in which it was seen
    yield looked(report, whole=False)


@fault(
    GROUP,
    "a frozen counter",
    sees="`partial`; `COUNTER_FROZEN`: the joules of that time are unknown",
    keeps="the joules of the rest; memory, whole",
)
def frozen(folder: Path) -> Iterator[Seen]:
    for end_s in (99.0, 4.5):
        tree = Tree(folder)
        at_uj = START_UJ + round(2.0 * WATTS["package-0"] * 1e6)
        tree.says = lambda s, uj, b=end_s, at_uj=at_uj: str(at_uj if 2.0 < s < b else uj)
        bench = tree.bench(6.0)
        report = bench.report(layers(bench.start_ns, [("in it", 1.5, 3.0), ("after", 4.0, 5.5)]))
        sealed(report, folder)
        # Where it moves on with all that it had held back, nothing is missing.
        yield looked(report, whole=end_s < 90)


@fault(
    GROUP,
    "a counter that publishes every few seconds, in a run that is hardly longer",
    sees="`partial` and `COUNTER_FROZEN` where its last step is missing",
    keeps="the joules that it published, over the time in which they were used; the bundle verifies",
)
def steps_of_seconds(folder: Path) -> Iterator[Seen]:
    watts = WATTS["package-0"]
    for step_s in (2.0, 3.2, 3.9, 4.7):
        tree = Tree(folder)
        tree.says = lambda s, _, step_s=step_s: str(START_UJ + round(watts * (s // step_s) * step_s * 1e6))
        report = sealed(tree.bench().report(), folder)
        package = next(led for led in report.ledgers if str(led.domain) == "cpu:0")
        lo_j, hi_j = report.systematic_of(package) or (0.98 * package.energy_j, 1.02 * package.energy_j)
        assert lo_j < watts * package.known_s < hi_j, (step_s, package.energy_j, package.known_s)
        assert package.known_s > 0.5
        yield Seen.of(report, files=False)


@fault(
    GROUP,
    "a counter that counts for a moment of the run only",
    sees="`partial`; `COUNTER_FROZEN`",
    keeps="the joules of that moment; the bundle verifies",
)
def a_moment(folder: Path) -> Iterator[Seen]:
    watts = WATTS["package-0"]
    for seconds in (0.02, 0.05, 0.5):
        tree = Tree(folder)
        tree.says = lambda s, _, n=seconds: str(START_UJ + round(watts * min(max(s, 3.0), 3.0 + n) * 1e6))
        bench = tree.bench(6.0)
        report = sealed(bench.report(layers(bench.start_ns, [("first", 0.0, 4.0), ("then", 4.0, 5.9)])), folder)
        assert abs(report.ledgers[0].energy_j - watts * seconds) < watts * 0.05
        yield Seen.of(report, files=False)


@fault(
    GROUP,
    "a counter that always says the same, or always 0",
    sees="`unavailable`: the meter did not change; `partial`",
    keeps="the other meters; of this one nothing, and no 0",
)
def dead(folder: Path) -> Iterator[Seen]:
    for said in ("0", str(START_UJ)):
        tree = Tree(folder)
        tree.says = lambda *_, said=said: said
        report = tree.bench().report()
        assert any("did not change" in u.reason or "no reading" in u.reason for u in report.unavailable)
        yield looked(report, whole=False)


@fault(
    GROUP,
    "nobody reads for longer than the counter takes to go round",
    sees="`partial`; `COUNTER_UNSURE`: counted too low if it went round more than once",
    keeps="the joules of the rest, and what the counter says of the gap",
)
def unseen_wraps(folder: Path) -> Iterator[Seen]:
    tree = Tree(folder, range_uj="600000000")
    tree.modulus = 600_000_001
    bench = tree.bench(40.0, jumps=[(5.0, 25.0)])
    report = bench.report()
    assert not report.ledgers[0].is_whole
    assert report.ledgers[0].energy_j < WATTS["package-0"] * 40
    yield Seen.of(report)
