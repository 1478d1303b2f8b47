"""Faults of clocks and of long runs, and recordings that hold what no meter says."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from math import fsum, inf, isclose, nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.faults.powercap import Tree, holds
from tests.faults.registry import Seen, fault
from tests.faults.virtual import START_NS, layers, report_of
from tests.support.powercap import FakePowercap
from tests.support.worlds import counter_channel, meter_of, power_channel, readings
from torchwatt.core.meter import FloatArray, IntArray, Recording
from torchwatt.core.terms import Domain
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors import Replay, Sampler, sampler_main
from torchwatt.sensors.rapl import discover_rapl

CLOCKS = "Clocks and long runs"
DATA = "Readings from elsewhere"
GPU = Domain("gpu", 0)
HOURS_24 = 24 * 3600


def _wait_for_clock_steps(feed: Sampler, count: int) -> None:
    """Wait until the sampler has seen so many steps, which a busy machine delays."""
    end_s = time.monotonic() + 20
    while sum(event.code == "CLOCK_STEP" for event in feed.snapshot().events) < count:
        assert time.monotonic() < end_s, f"step {count} was not seen"
        time.sleep(0.02)


@fault(
    CLOCKS,
    "the wall clock steps forwards, backwards, by an hour, by 0.2 s",
    sees="`CLOCK_STEP` with the step in seconds",
    keeps="every joule and every duration: all is dated by the monotonic clock",
    proofs=["tests/sensors/test_sensors_loop.py::test_a_step_of_the_wall_clock_is_seen_and_its_drift_is_not"],
)
def wall_clock(folder: Path) -> Iterator[Seen]:
    real = sampler_main.time
    with FakePowercap(folder / "clock") as tree:
        feed = Sampler(discover_rapl(tree.root), mode="thread")
        feed.start()
        start_ns = real.monotonic_ns()
        try:
            for count, step_s in enumerate((3600.0, -3600.0, 0.2, -0.2), 1):
                off_ns = round(step_s * NS_PER_S)
                shifted = SimpleNamespace(monotonic_ns=real.monotonic_ns, time_ns=lambda o=off_ns: real.time_ns() + o)
                sampler_main.time = shifted  # type: ignore[attr-defined]
                real.sleep(0.1)
                feed.read_now()
                _wait_for_clock_steps(feed, count)
            sampler_main.time = real  # type: ignore[attr-defined]
            _wait_for_clock_steps(feed, count + 1)
            end_ns = real.monotonic_ns()
        finally:
            sampler_main.time = real  # type: ignore[attr-defined]
            recording = feed.stop()
        report = report_of(recording, start_ns, end_ns)
        steps = [event.message for event in report.events if event.code == "CLOCK_STEP"]
        assert len(steps) == 5  # and back
        (package,) = (led for led in report.ledgers if str(led.domain) == "cpu:0")
        assert abs(package.energy_j / (40.0 * package.known_s) - 1) < 0.1
        assert abs(report.duration_s - (end_ns - start_ns) / NS_PER_S) < 1e-9
        yield Seen.of(report)


def _day(hz: float) -> tuple[Recording, float]:
    """Return 24 h of a package that wraps 791 times and of a GPU with a counter and a power sensor."""
    t_ns = START_NS + np.arange(int(HOURS_24 * hz) + 1) * round(NS_PER_S / hz)
    rng = np.random.default_rng(0)
    watts = rng.uniform(100, 200, len(t_ns) - 1)
    total_uj = np.concatenate(([0], np.cumsum(np.round(watts / hz * 1e6)))).astype(np.int64)
    modulus = 16_384_000_000
    package = counter_channel(modulus=modulus)
    gpu, power = counter_channel(domain=GPU, sensor="nvml_energy_counter"), power_channel(domain=GPU)
    series = (
        readings(package, t_ns, (total_uj % modulus).astype(np.float64)),
        readings(gpu, t_ns, (total_uj * 2).astype(np.float64)),
        readings(power, t_ns, np.concatenate((watts[:1], watts)) * 2e3),
    )
    return Recording((meter_of(package), meter_of(gpu, power)), series), float(total_uj[-1]) * 1e-6


@fault(
    CLOCKS,
    "24 hours, in which the counter goes round 791 times",
    sees="`COUNTER_WRAP`; the summary in kWh",
    keeps="every joule to 1e-9; at most 400 MB while settling 5 readings a second of 2 devices",
)
def a_day(folder: Path) -> Iterator[Seen]:
    recording, truth_j = _day(5.0)
    feed = Replay(recording, shift="none")
    feed.start()
    end_ns = START_NS + HOURS_24 * NS_PER_S
    hours = layers(START_NS, [(f"hour{h % 4}", h * 3600.0, h * 3600.0 + 3000.0) for h in range(24)])
    tracemalloc.start()
    report = report_of(feed.stop(), START_NS, end_ns, hours)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 400e6, peak_bytes
    for ledger, times in zip(report.ledgers, (1, 2), strict=True):
        assert isclose(ledger.energy_j, times * truth_j, rel_tol=1e-9), ledger.domain
        assert isclose(fsum(e.energy_self_j for e in ledger.entries), ledger.energy_j, rel_tol=1e-9)
        assert ledger.is_whole
    assert report.ledgers[0].counter_wraps == int(truth_j / 16384.0)
    assert len(report.steps) == 24
    assert isclose(fsum(s.energy_j["cpu:0"] for s in report.steps) / truth_j, 3000 / 3600, rel_tol=0.01)
    yield Seen.of(report, files=False)


@fault(
    CLOCKS,
    "24 hours in the sampler's memory",
    sees="`SAMPLER_THINNED`: every other reading kept, the period doubled",
    keeps="the whole day in memory that does not grow",
    proofs=["tests/sensors/test_sensors_ring.py::test_thinning_keeps_order_and_covers_the_whole_time"],
)
def a_day_of_sampling(folder: Path) -> Iterator[Seen]:
    bench = Tree(folder).bench(float(HOURS_24), capacity=1024)
    recording = bench.record()
    assert max(len(one) for one in recording.series) <= 1024
    report = report_of(recording, bench.start_ns, bench.end_ns)
    holds(report, rel=1e-3)
    assert all(led.is_whole for led in report.ledgers)
    yield Seen.of(report)


@fault(
    CLOCKS,
    "the sampler (or the whole machine) sleeps for a minute",
    sees="`SAMPLE_GAP`",
    keeps="the counter's joules of that minute; of a power sensor's nothing is made up",
)
def asleep(folder: Path) -> Iterator[Seen]:
    report = Tree(folder).bench(80.0, jumps=[(10.0, 60.0)]).report()
    holds(report)
    yield Seen.of(report)


def _two(t_ns: IntArray, raw: FloatArray, milliwatts: FloatArray) -> Recording:
    """Make a recording of a package's counter and of a GPU's power."""
    counter, power = counter_channel(), power_channel(domain=GPU)
    series = readings(counter, t_ns, raw), readings(power, t_ns[: len(milliwatts)], milliwatts)
    return Recording((meter_of(counter), meter_of(power)), series)


@fault(
    DATA,
    "NaN, infinite, negative and absurd readings in a recording",
    sees="`POWER_ABSURD`, `COUNTER_JUMP`",
    keeps="all other readings; the joules of both routes",
)
def no_numbers(folder: Path) -> Iterator[Seen]:
    t_ns = START_NS + np.arange(500) * 10_000_000
    for bad in (nan, inf, -inf, -1e9, 1e300):
        for where in (slice(200, 203), slice(0, 2), slice(498, 500)):
            raw, watts = np.arange(500) * 1e6, np.full(500, 100e3) + np.arange(500) % 3
            raw[where] = watts[where] = bad
            recording = _two(t_ns, raw, watts)
            report = report_of(recording, START_NS + NS_PER_S, START_NS + 4 * NS_PER_S)
            assert [round(led.energy_j / led.known_s) for led in report.ledgers] == [100, 100], (bad, where)
            yield Seen.of(report)


@fault(
    DATA,
    "stamps that stand still or go back",
    sees="nothing: a reading that is not later than the one before is no reading",
    keeps="the joules",
)
def stamps(folder: Path) -> Iterator[Seen]:
    base_ns = START_NS + np.arange(500) * 10_000_000
    back = base_ns.copy()
    back[200:210] -= 500_000_000
    stuck = base_ns.copy()
    stuck[200:230] = stuck[200]
    for t_ns in (back, stuck):
        raw, watts = np.arange(500) * 1e6, np.full(500, 100e3) + np.arange(500) % 3
        recording = _two(t_ns, raw, watts)
        report = report_of(recording, START_NS + NS_PER_S, START_NS + 4 * NS_PER_S)
        assert [round(led.energy_j / led.known_s) for led in report.ledgers] == [100, 100]
        yield Seen.of(report)


@fault(
    DATA,
    "a meter whose readings make no curve beside one whose readings do",
    sees="`unavailable` for that one, `partial`",
    keeps="the other",
)
def one_reading(folder: Path) -> Iterator[Seen]:
    t_ns = START_NS + np.arange(500) * 10_000_000
    for n in (0, 1):
        recording = _two(t_ns, np.arange(500) * 1e6, np.full(n, 1e5))
        report = report_of(recording, START_NS + NS_PER_S, START_NS + 4 * NS_PER_S)
        assert [str(led.domain) for led in report.ledgers] == ["cpu:0"]
        yield Seen.of(report)
