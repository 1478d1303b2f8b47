"""A counter that lies is never "measured, -5..+5 %": its band holds the truth, or it is called unchecked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.worlds import MS
from torchwatt.core.meter import Channel, Meter, Recording, Series
from torchwatt.core.terms import Domain
from torchwatt.core.trace import EMPTY_TRACE
from torchwatt.reports.report_builder import RunInterval, RunOutcome, build_report
from torchwatt.reports.run_options import RunOptions

ORIGIN_NS = 3_000_000_000_000
KINDS = {
    "gpu": (Domain("gpu", 0), "nvml_energy_counter", "nvml_power_instant"),
    "old": (Domain("gpu", 0), "nvml_energy_counter", "nvml_power"),
    "cpu": (Domain("cpu", 0), "rapl", "hwmon_power"),
}


def report_of(gain, seconds, *, kind="gpu", counter_ms=20, power_ms=20, around_s=0.1, swing_w=0.0, power=True):
    """Meter a device whose counter says `gain` times the truth; `around_s` were recorded before and after the run."""
    rng, watts = np.random.default_rng(5), 200.0
    t_s = np.arange(0.0, seconds + 2 * around_s + 1e-9, 0.02)
    t_s = t_s + np.concatenate(([0.0], rng.uniform(-0.007, 0.007, len(t_s) - 1)))

    def energy_j(at):
        return watts * at - swing_w / 3.7 * np.cos(3.7 * at)

    at_counter = np.floor((t_s + 0.333 * counter_ms / 1e3) / (counter_ms / 1e3)) * counter_ms / 1e3
    at_power = np.floor(t_s / (power_ms / 1e3)) * power_ms / 1e3
    update = np.round(at_power / (power_ms / 1e3)).astype(int)
    noise = rng.normal(0.0, 0.5, update.max() + 1)[update]
    said_w = watts + swing_w * np.sin(3.7 * at_power) + noise
    domain, counts, reads = KINDS[kind]
    energy = Channel(domain, "energy", "counter", "J", 1e-3, 20 * MS, counts)
    channels = (energy, Channel(domain, "power", "power", "W", 1e-3, 20 * MS, reads))[: 1 + power]
    meter = Meter(domain, channels, "measured", "device", "device", accuracy_rel=(-0.05, 0.05))
    t_ns = ORIGIN_NS + np.round(t_s * 1e9).astype(np.int64)
    raw = (np.floor((5e3 + gain * energy_j(at_counter)) * 1e3), np.round(said_w * 1e3))
    series = tuple(Series(c, t_ns, r, np.zeros_like(t_ns)) for c, r in zip(channels, raw, strict=False))
    start_s, end_s = around_s, around_s + seconds
    bounds = RunInterval(ORIGIN_NS + round(start_s * 1e9), ORIGIN_NS + round(end_s * 1e9), 1)
    report = build_report("x", RunOptions(), bounds, Recording((meter,), series), EMPTY_TRACE, RunOutcome("complete"))
    return report, float(energy_j(end_s) - energy_j(start_s))


def honest(report, truth_j):
    """Tell whether the truth is inside of what another meter may say, or the meter is called unchecked."""
    if not report.ledgers:
        return bool(report.unavailable)
    ledger = report.ledgers[0]
    lo_j, hi_j = report.systematic_of(ledger) or (0.0, np.inf)
    return lo_j <= truth_j * ledger.coverage <= hi_j or "unchecked" in ledger.sentence


GAINS = st.one_of(st.sampled_from([1e-6, 1e-3, 0.5, 0.8, 1.25, 2.15, 10.0]), st.floats(0.0005, 5.0))


@examples(30)
@given(
    GAINS, st.floats(0.3, 8.0), st.sampled_from(sorted(KINDS)), st.sampled_from([20, 50, 100, 300, 1000, 2000]),
    st.sampled_from([20, 50, 100, 500, 1000]), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 60.0]),
)  # fmt: skip
@example(1e-3, 0.3, "gpu", 20, 20, 0.0, 0.0)
@example(2.15, 0.3, "gpu", 100, 100, 0.1, 0.0)
@example(2.15, 0.3, "cpu", 20, 100, 0.1, 0.0)
def test_no_lie_of_a_counter_passes_for_a_measurement(gain, seconds, kind, counter_ms, power_ms, around_s, swing_w):
    report, truth_j = report_of(
        gain, seconds, kind=kind, counter_ms=counter_ms, power_ms=power_ms, around_s=around_s, swing_w=swing_w
    )
    assert honest(report, truth_j), (report.energy_j, truth_j, [led.sentence for led in report.ledgers])


@pytest.mark.parametrize("seconds", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_counter_that_agrees_keeps_its_band_and_nothing_is_said(seconds, kind):
    report, truth_j = report_of(1.0, seconds, kind=kind, around_s=1.0, swing_w=40.0)
    assert report.meters[0].accuracy_rel == (-0.05, 0.05)
    assert report.events == ()
    assert report.energy_j == pytest.approx(truth_j, rel=0.05)


@pytest.mark.parametrize("gain", [1e-3, 0.5, 2.15])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 4.0, 8.0])
def test_a_lie_is_told_by_an_event_however_short_the_run(gain, seconds):
    report, _ = report_of(gain, seconds)
    assert {"CROSS_CHECK", "SCOPE_UNKNOWN"} & {event.code for event in report.events}


def test_a_counter_alone_is_unchecked():
    report, _ = report_of(1.0, 2.0, kind="cpu", power=False)
    assert "unchecked" in report.ledgers[0].sentence


def test_a_counter_too_slow_for_the_run_leaves_it_to_the_power_beside_it():
    for counter_ms in (1000, 2000, 5000):
        report, truth_j = report_of(1.0, 2.0, counter_ms=counter_ms, around_s=1.0, swing_w=80.0)
        ledger = report.ledgers[0]
        assert ledger.method == "power_integral"
        assert ledger.energy_j == pytest.approx(truth_j, rel=0.02)
        assert honest(report, truth_j)
