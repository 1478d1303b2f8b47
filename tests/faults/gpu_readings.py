"""Faults of what GPUs say: counters that jump, stand still or start again, powers that cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.faults.nvml import GROUP, SECONDS, WATTS, both, energy_j, gpus, holds
from tests.faults.registry import Seen, fault, proved
from tests.faults.virtual import sealed
from tests.support.nvml_simulator import PowerTrace
from torchwatt.audit import verify, write_bundle
from torchwatt.core.report import Report

SESSION = "tests/session/test_nvml.py::"
SAMPLED = "tests/sensors/test_sensors_sampled_gpu.py::"
RING = "tests/sensors/test_sensors_samples_gpu.py::"
NO_COUNTER = {"counter": "none"}


@fault(
    GROUP,
    "a counter that goes backwards, or starts again at 0 (driver reload)",
    sees="`COUNTER_RESET`, with the joules that were filled in",
    keeps="the whole run: the interval comes from the integrated power",
    proofs=[SESSION + "test_a_counter_that_goes_backwards_is_bridged"],
)
def backwards(folder: Path) -> Iterator[Seen]:
    for change in ("add_mj=-500000", "set_mj=0", "set_mj=1"):
        yield both(gpus(folder, f"jump at_s=3 {change}"))


@fault(
    GROUP,
    "a counter that wraps at a place that the driver does not tell",
    sees="`COUNTER_RESET`",
    keeps="the whole run",
)
def wraps(folder: Path) -> Iterator[Seen]:
    yield both(gpus(folder, first={"counter_start_mj": 0, "counter_wrap_mj": 400_000}, seconds=6))


@fault(
    GROUP,
    "a driver reload: all calls fail for five seconds, then the counter starts again",
    sees="`partial`; `SENSOR_LOST`, `SENSOR_BACK`, `COUNTER_LOST`: the joules of that time are unknown",
    keeps="the joules before and after, and the time that they cover",
)
def reloaded(folder: Path) -> Iterator[Seen]:
    report = gpus(folder, "fault device=0 code=15 from_s=3 until_s=8", "jump at_s=5 set_mj=0", seconds=10)
    ledger = report.ledgers[0]
    assert 4.5 < ledger.known_s < 5.5
    assert report.steps == ()
    yield both(report)


@fault(
    GROUP,
    "the same on a GPU without a counter",
    sees="`partial`; `SENSOR_LOST`, `SENSOR_BACK`, `SAMPLE_GAP`",
    keeps="the joules before and after; a layer that ran in between only has no row, a step none",
)
def power_lost(folder: Path) -> Iterator[Seen]:
    parts = [("before", 0.0, 1.5), ("between", 3.0, 4.5), ("after", 8.0, 9.0)]
    report = gpus(folder, "fault device=0 code=16 from_s=3 until_s=8", first=NO_COUNTER, seconds=10, parts=parts)
    assert 4.5 < report.ledgers[0].known_s < 5.5
    between = report.steps[1].energy_j
    assert set(between) == {"gpu:1"}
    yield both(report)


@fault(
    GROUP,
    "a GPU that is away for the whole run, and there before and after",
    sees="`unavailable`: no reading during the run; `SENSOR_LOST`, `SENSOR_BACK`",
    keeps="the other meters; of this one nothing, and no 0",
)
def away_for_all(folder: Path) -> Iterator[Seen]:
    away = "fault device=0 code=15 from_s=0.5 until_s=8.5"
    for first in (NO_COUNTER, {}):
        report = gpus(folder, away, "jump at_s=4 set_mj=0", first=first, seconds=7.4)
        assert energy_j(report, "gpu:0") is None, report.ledgers[0]
        yield both(report)


@fault(
    GROUP,
    "a frozen counter beside a power sensor",
    sees="`COUNTER_FROZEN`",
    keeps="the whole run: the stretch comes from the integrated power",
    proofs=[SESSION + "test_a_frozen_counter_is_replaced_by_power_from_then_on"],
)
def frozen_counter(folder: Path) -> Iterator[Seen]:
    yield both(gpus(folder, "hold sensor=counter from_s=2", seconds=6))
    yield both(gpus(folder, "hold sensor=counter from_s=2 until_s=5", seconds=7))
    yield both(gpus(folder, "hold sensor=counter from_s=-10", seconds=6))


@fault(
    GROUP,
    "a frozen counter, and no power sensor",
    sees="`partial` or `unavailable`; `COUNTER_FROZEN`: the joules of that time are unknown",
    keeps="the joules up to then",
)
def frozen_alone(folder: Path) -> Iterator[Seen]:
    no_power = "fault call=field:*,nvmlDeviceGetPowerUsage device=0 code=3"
    report = gpus(folder, no_power, "hold sensor=counter from_s=3", seconds=6)
    assert 1.8 < report.ledgers[0].known_s < 2.2
    yield both(report)
    report = gpus(folder, no_power, "hold sensor=counter from_s=-10", seconds=6)
    assert energy_j(report, "gpu:0") is None
    yield both(report)


@fault(
    GROUP,
    "a power sensor that repeats one value",
    sees="`POWER_FROZEN`, and `CROSS_CHECK` where a counter disagrees",
    keeps="the counter's joules; without a counter the joules, with the warning",
    proofs=[SESSION + "test_a_stuck_power_sensor_is_said_and_the_counter_stands"],
)
def frozen_power(folder: Path) -> Iterator[Seen]:
    power = {"power": PowerTrace.steps((0.0, WATTS[0]), (1.2, 800.0))}
    report = gpus(folder, "hold sensor=power from_s=1", first=power, seconds=7)
    holds(report, "gpu:0", 800.0, rel=0.05)
    yield Seen.of(report)
    report = gpus(folder, "hold sensor=power from_s=1", first=NO_COUNTER | power, seconds=7)
    yield Seen.of(report)


@fault(
    GROUP,
    "stamps of the driver that stand still",
    sees="nothing: readings carry our own clock, and the driver's stamps are not used",
    keeps="the whole run",
)
def stamps(folder: Path) -> Iterator[Seen]:
    yield both(gpus(folder, first={"stamp": "tick", "update_ms": 60_000, "noise_w": 0}))


@fault(
    GROUP,
    "a counter that says 2^64-1 mJ, once or from then on",
    sees="`COUNTER_JUMP`, with how many readings were left out or what was filled in",
    keeps="the whole run: by the readings around it, or from the integrated power",
)
def absurd_counter(folder: Path) -> Iterator[Seen]:
    once = ("jump at_s=3 add_mj=18446744070000000000", "jump at_s=3.05 add_mj=-18446744070000000000")
    for statements in (once, once[:1]):
        yield both(gpus(folder, *statements))


@fault(
    GROUP,
    "a power of 2^32-1 mW, or a negative one, for a moment or from then on; no counter",
    sees="`POWER_ABSURD` with the value and how many; `partial` where it stays",
    keeps="the joules of all readings that can be",
)
def absurd_power(folder: Path) -> Iterator[Seen]:
    for watts in (4294967.295, -1.0, 1e9):
        for until in (3.1, 60):
            report = gpus(folder, f"force from_s=3 until_s={until} watts={watts}", first=NO_COUNTER, seconds=6)
            assert (report.ledgers[0].known_s > 5) == (until < 60)
            yield both(report)


@fault(
    GROUP,
    "0 W from a GPU that works, for a moment, for a while, from the start; no counter",
    sees="`ZERO_READING`; `SAMPLE_GAP` and `partial` where it lasts, `unavailable` where it never ends",
    keeps="the joules of the rest",
    proofs=[SAMPLED + "test_zero_watts_are_missing_not_zero"],
)
def zero_power(folder: Path) -> Iterator[Seen]:
    for start, until in ((3, 3.2), (3, 6), (-10, 60)):
        yield both(gpus(folder, f"force from_s={start} until_s={until} watts=0", first=NO_COUNTER, seconds=6))


@fault(
    GROUP,
    "0 W half of the time, and no counter",
    sees="`partial`; `ZERO_READING`, `SAMPLE_GAP`: what is not known is not counted, and lowers the coverage",
    keeps="the joules of the other half",
)
def zero_by_turns(folder: Path) -> Iterator[Seen]:
    for period_s in (0.2, 1.0, 3.1):
        turns = PowerTrace.steps((0.0, 160.0), (period_s / 2, 0.0), repeat_s=period_s)
        report = gpus(folder, first=NO_COUNTER | {"noise_w": 0, "power": turns}, seconds=6)
        ledger = report.ledgers[0]
        assert 0.35 < ledger.coverage < 0.65
        assert ledger.energy_u_j is not None
        assert abs(ledger.energy_j - 160 * ledger.known_s) < 0.02 * ledger.energy_j + 5
        assert abs(ledger.energy_j - 480) < 60
        write_bundle(report, folder / f"bundle-{period_s}")
        found = verify(folder / f"bundle-{period_s}")
        assert found.ok, found
        yield Seen.of(report, files=period_s == 1.0)


def _inside(report: Report, truth_j: float) -> None:
    """Check that the truth lies inside what another meter may say, or that the meter is called unchecked."""
    ledger = report.ledgers[0]
    lo_j, hi_j = report.systematic_of(ledger) or (0.0, 1e12)
    assert lo_j <= truth_j * ledger.coverage <= hi_j or "unchecked" in ledger.sentence, (lo_j, truth_j, hi_j)


@fault(
    GROUP,
    "a counter 1,000 times too small, or by 30 to 115 % too large, in a run of any length",
    sees="`CROSS_CHECK`, or `SCOPE_UNKNOWN` where it says more than the power: its interval reaches to the power",
    keeps="the counter's joules, and an interval that holds the true ones",
    proofs=["tests/attribution/test_cross_check.py"],
)
def lying_counter(folder: Path) -> Iterator[Seen]:
    for gain in (0.0, 0.001, 0.7, 1.3, 2.15, 1000.0):
        for seconds in (0.3, 1.0, 3.0, 6.0):
            report = gpus(folder, first={"counter_gain": gain}, seconds=seconds)
            _inside(sealed(report, folder), WATTS[0] * seconds)
            yield Seen.of(report, files=False)


@fault(
    GROUP,
    "a counter that publishes every one to five seconds, in a run as short",
    sees="in the domain's sentence, that the counter publishes too seldom and its power was integrated",
    keeps="the whole run, from the integrated power",
)
def slow_counter(folder: Path) -> Iterator[Seen]:
    for every_ms in (1000, 2000, 5000):
        for seconds in (0.5, 1.0, 2.0, 5.0):
            first = {"counter_update_ms": every_ms, "counter_phase_ms": 333}
            report = gpus(folder, first=first, seconds=seconds)
            ledger = report.ledgers[0]
            assert abs(ledger.energy_j - WATTS[0] * seconds) < 0.02 * WATTS[0] * seconds + 5
            assert ledger.method == "power_integral"
            assert "publishes every" in ledger.sentence
            yield both(sealed(report, folder))


@fault(
    GROUP,
    "milliwatts from a GPU that works, for a moment or half of the time; no counter",
    sees="`partial`; `ZERO_READING`, `SAMPLE_GAP`: a board that answers draws more than half a watt",
    keeps="the joules of the rest",
)
def next_to_nothing(folder: Path) -> Iterator[Seen]:
    for watts in (0.001, 0.3):
        yield both(gpus(folder, f"force watts={watts} from_s=2 until_s=2.1", first=NO_COUNTER))
        yield both(gpus(folder, f"force watts={watts} from_s=2 until_s=4", first=NO_COUNTER))


@fault(
    GROUP,
    "a power sensor that repeats one value for two seconds, and changed at every update before; no counter",
    sees="`POWER_FROZEN`",
    keeps="the joules by that value, with the warning",
)
def frozen_for_two_seconds(folder: Path) -> Iterator[Seen]:
    first = NO_COUNTER | {"power": PowerTrace.steps((0.0, 100.0), (3.0, 600.0))}
    yield Seen.of(gpus(folder, "hold sensor=power from_s=2 until_s=4.5", first=first), files=False)


@fault(
    GROUP,
    "a power sensor that repeats one value for half a second, and changed every 20 ms before; no counter",
    sees="`POWER_FROZEN`",
    keeps="the joules by that value, with the warning",
)
def frozen_for_half_a_second(folder: Path) -> Iterator[Seen]:
    first = NO_COUNTER | {"power": PowerTrace.steps((0.0, 100.0), (2.2, 600.0), (2.6, 100.0))}
    report = gpus(folder, "hold sensor=power from_s=2 until_s=2.5", first=first)
    yield Seen.of(sealed(report, folder), files=False)


@fault(
    GROUP,
    "a power sensor of an unknown model that averages over a part of its period, without a counter and without steps",
    sees="`PART_TIME_POWER`, and in the sentence that the meter is unchecked",
    keeps="the joules of the samples; where they vary, an interval for what so few may have missed",
)
def unknown_window(folder: Path) -> Iterator[Seen]:
    for update_ms in (20, 200, 1000):
        bursts = PowerTrace.steps((0.0, 600.0), (update_ms / 4000, 100.0), repeat_s=update_ms / 1000)
        first = NO_COUNTER | {"update_ms": update_ms, "instant_ms": 10, "power": bursts}
        report = sealed(gpus(folder, first=first), folder)
        assert "unchecked" in report.ledgers[0].sentence
        if update_ms == 1000:
            lo_j, hi_j = report.systematic_of(report.ledgers[0]) or (0.0, 0.0)
            assert lo_j <= 225.0 * SECONDS <= hi_j
        yield Seen.of(report, files=False)
    report = sealed(gpus(folder, first=NO_COUNTER), folder)  # power that does not change: nothing is widened
    lo_j, hi_j = report.systematic_of(report.ledgers[0]) or (0.0, 0.0)
    assert hi_j - lo_j < 0.15 * WATTS[0] * SECONDS
    yield Seen.of(report, files=False)


@fault(
    GROUP,
    "a device that drew more in the idle baseline before the run than in the run",
    sees="nothing: static power is at most the mean power of the run",
    keeps="the joules of the run",
)
def busy_before(folder: Path) -> Iterator[Seen]:
    for first in ({}, NO_COUNTER):
        power = PowerTrace.steps((0.0, 600.0), (0.9, 100.0))
        report = sealed(gpus(folder, first={**first, "power": power}), folder)
        holds(report, "gpu:0", 100.0, rel=0.05)
        yield Seen.of(report, files=False)


@fault(
    GROUP,
    "a meter that says more than the card's own power limit",
    sees="`OVER_LIMIT`, and in the sentence that the meter is unchecked",
    keeps="what the meter says, with the warning",
)
def above_limit(folder: Path) -> Iterator[Seen]:
    for first in ({}, NO_COUNTER):
        report = gpus(folder, first={**first, "limit_w": 700, "power": 1500.0}, seconds=2)
        assert "unchecked" in report.ledgers[0].sentence
        yield Seen.of(sealed(report, folder), files=False)
    yield Seen.of(sealed(gpus(folder, first={"limit_mw": 1000}, seconds=1), folder), files=False)


@fault(
    GROUP,
    "a frozen counter beside a power sensor that repeats one value",
    sees="`COUNTER_FROZEN` and `POWER_FROZEN`: the joules of that time rest on the value that does not change",
    keeps="the joules by that value, with the warning",
)
def frozen_both(folder: Path) -> Iterator[Seen]:
    yield both(sealed(gpus(folder, "hold sensor=counter from_s=2", "hold sensor=power from_s=2", seconds=6), folder))


@fault(
    GROUP,
    "steps in sync with a power sensor that has no counter beside it",
    sees="`partial`; `PHASES_UNSEEN`, and in the sentence which part of a step was never sampled",
    keeps="an interval that holds whatever the device can draw in the phases that nobody saw",
    proofs=["tests/attribution/test_unsampled_phases.py"],
)
def in_step(folder: Path) -> Iterator[Seen]:
    first = NO_COUNTER | {"power": PowerTrace.steps((0.0, 600.0), (0.05, 100.0), repeat_s=0.1)}
    parts = [("a", n / 10, n / 10 + 0.09) for n in range(59)]
    report = gpus(folder, first=first, seconds=6, model="hopper", parts=parts)
    _inside(report, 350.0 * 6)
    yield Seen.of(report, files=False)
    report = gpus(folder, first=first, seconds=6, model="hopper")
    _inside(sealed(report, folder), 350.0 * 6)  # without steps nobody knows: the meter is called unchecked
    yield Seen.of(report, files=False)


@fault(
    GROUP,
    "a device name that is not UTF-8",
    sees="the name with marks for what cannot be read",
    keeps="all GPUs, whole",
)
def odd_name(folder: Path) -> Iterator[Seen]:
    report = gpus(folder, first={"name": b"NVIDIA \xffGPU\xc3"}, seconds=0.5)
    assert report.meters[0].model == "NVIDIA \ufffdGPU\ufffd"
    yield both(report)


@fault(
    GROUP,
    "a GPU that appears after the run has begun",
    sees="`unavailable`, with the error at the start, and `GPU_APPEARED` with its name at the end",
    keeps="the GPUs that were there: devices are looked for once, at the start",
)
def late(folder: Path) -> Iterator[Seen]:
    report = gpus(folder, "fault call=nvmlDeviceGetHandleByIndex device=0 code=28 until_s=2")
    (told,) = [event.message for event in report.events if event.code == "GPU_APPEARED"]
    assert told.startswith("GPU-")
    yield both(report)


@fault(
    GROUP,
    "a GPU that vanishes, handle and all",
    sees="`partial`; `SENSOR_LOST`, `unavailable` from then on",
    keeps="the joules up to then",
    proofs=[
        SESSION + "test_a_lost_gpu_keeps_what_was_measured_and_says_when_it_ended",
        SAMPLED + "test_a_gpu_that_stays_lost_is_unavailable_from_then",
    ],
)
def vanished(folder: Path) -> Iterator[Seen]:
    for code in (15, 16, 28):
        yield both(gpus(folder, f"fault device=0 code={code} from_s=3"))
        # A bus that hangs up answers nothing at all, not even how many devices there are.
        yield Seen.of(gpus(folder, f"fault code={code} from_s=3"))


proved(
    GROUP,
    "a driver call that hangs: at discovery, in a read, at the run's edge, for ever",
    sees="`SENSOR_HANG` or EDGE_READ_TIMEOUT; at discovery `unavailable` after ten seconds",
    keeps="all other meters without a gap; the counter's joules across the hang",
    by=[
        SESSION + "test_a_driver_that_hangs_for_two_seconds_costs_resolution_not_joules",
        SAMPLED + "test_a_driver_that_hangs_stops_its_own_channels_only",
        SAMPLED + "test_an_edge_in_a_hung_driver_is_given_up_and_the_run_ends",
        "tests/sensors/test_sensors_nvml.py::test_a_driver_that_hangs_is_given_up",
    ],
)

proved(
    GROUP,
    "the driver's own ring of power samples: none, empty, coarse, on another clock, frozen; the wall clock is set",
    sees="RING_UNUSED with the reason: at the start, or where layers are fitted; CLOCK_STEP where the clock was set",
    keeps="all joules; layers by the power that is polled, where samples are missing for a tenth of the run",
    by=[
        RING + "test_a_ring_that_is_no_use_leaves_the_polled_power_and_is_told",
        RING + "test_stamps_of_the_time_since_boot_are_told_from_those_of_the_wall_clock",
        RING + "test_a_ring_that_freezes_says_nothing_more_and_is_no_error",
        "tests/attribution/test_readings.py::test_a_ring_that_froze_is_told_and_the_polled_power_is_used",
        "tests/sensors/test_sensors_samples.py::test_a_wall_clock_that_is_set_costs_readings_and_never_misdates_one",
    ],
)

proved(
    GROUP,
    "that ring fails in the middle of the run, or the sampler sleeps for longer than it reaches back",
    sees="SENSOR_LOST and SENSOR_BACK of this channel, or SAMPLE_GAP",
    keeps="all joules, and every sample that the ring still held",
    by=[
        RING + "test_a_ring_that_fails_during_a_run_is_told_and_comes_back",
        "tests/sensors/test_sensors_samples.py::test_a_sampler_that_slept_longer_than_the_ring_reaches_misses_readings_and_no_more",
    ],
)
