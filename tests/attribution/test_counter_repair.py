from dataclasses import replace
from math import isclose

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.worlds import MS, counter_channel, meter_of, power_channel, readings, recording_of
from torchwatt.attribution.counter_repair import unwrap_counter
from torchwatt.attribution.metered_curve import build_metered_curve
from torchwatt.attribution.run_attribution import attribute_recording
from torchwatt.core.meter import Unavailable
from torchwatt.core.trace import Span, trace_from_spans

steps_uj = st.lists(st.integers(0, 400_000), min_size=1, max_size=40)


def polled(raw, *, channel, period_ms=10):
    return readings(channel, np.arange(len(raw)) * period_ms * MS, raw)


@given(steps_uj, st.integers(400_001, 2_000_000), st.integers(0, 2_000_000))
def test_wrapping_leaves_no_trace(steps, modulus, start):
    total = np.concatenate(([0], np.cumsum(steps))) + start
    found = unwrap_counter(polled(total % modulus, channel=counter_channel(modulus=modulus)), None)
    plain = unwrap_counter(polled(total, channel=counter_channel()), None)
    assert np.allclose(found.energy_j, plain.energy_j, rtol=0, atol=1e-9)
    assert found.coarse or isclose(found.energy_j[-1], sum(steps) * 1e-6, abs_tol=1e-9)  # exact but for slow counters
    assert len(found.wrap_ns) == total[-1] // modulus - total[0] // modulus


@given(steps_uj, st.integers(-(10**15), 10**15))
def test_shifting_the_clock_changes_nothing(steps, shift):
    raw = np.concatenate(([0], np.cumsum(steps)))
    one = polled(raw, channel=counter_channel())
    two = readings(one.channel, one.t_ns + shift, raw)
    assert unwrap_counter(one, None).energy_j.tolist() == unwrap_counter(two, None).energy_j.tolist()


@given(steps_uj, st.integers(1, 40))
def test_two_halves_add_up_to_the_whole(steps, cut):
    raw = np.concatenate(([0], np.cumsum(steps)))
    cut = min(cut, len(raw) - 1)
    whole = polled(raw, channel=counter_channel())
    t = whole.t_ns

    def part(lo, hi):
        return unwrap_counter(readings(whole.channel, t[lo:hi], raw[lo:hi]), None).poll_j[-1] if hi - lo > 1 else 0.0

    # As polled: what a slow counter had not yet published at the cut is another half's to date.
    assert isclose(part(0, cut + 1) + part(cut, len(raw)), unwrap_counter(whole, None).poll_j[-1], abs_tol=1e-9)


def steady_power(seconds, watts=100.0):
    channel = power_channel()
    t = np.arange(0, seconds * 1000, 20) * MS
    return readings(channel, t, np.full(len(t), watts * 1e3) + np.arange(len(t)) % 2)


def test_a_reset_is_bridged_by_integrated_power_and_said():
    raw = np.arange(200) * 1_000_000.0  # 1 J every 10 ms: 100 W
    raw[100:] -= raw[100]
    counter = polled(raw, channel=counter_channel())
    power = steady_power(2.5)
    meter = meter_of(counter.channel, power.channel)
    found = build_metered_curve(meter, recording_of(meter, counter, power))
    assert isclose(found.curve.total_j, 199.0, rel_tol=1e-3)
    assert [e.code for e in found.events] == ["COUNTER_RESET"]


def test_a_small_step_backwards_without_modulus_is_a_reset_not_a_wrap():
    raw = np.arange(100) * 1_000_000.0
    raw[50:] -= 5_000_000
    found = unwrap_counter(polled(raw, channel=counter_channel()), None)
    assert isclose(found.energy_j[-1], 99.0, rel_tol=1e-6)
    assert [e.code for e in found.events] == ["COUNTER_RESET"]


def test_a_frozen_counter_is_bridged_and_said():
    raw = np.arange(800) * 1_000_000.0
    raw[200:] = raw[200]
    counter, power = polled(raw, channel=counter_channel()), steady_power(8)
    meter = meter_of(counter.channel, power.channel)
    found = build_metered_curve(meter, recording_of(meter, counter, power))
    assert isclose(found.curve.total_j, 799.0, rel_tol=1e-2)
    assert found.curve.method == "power_integral"
    assert "COUNTER_FROZEN" in {e.code for e in found.events}


def test_a_slow_counter_is_not_called_frozen():
    energy = np.floor(np.arange(1000) / 10) * 10_000_000.0  # publishes every 100 ms, polled every 10
    counter, power = polled(energy, channel=counter_channel()), steady_power(10)
    meter = meter_of(counter.channel, power.channel)
    found = build_metered_curve(meter, recording_of(meter, counter, power))
    assert found.polls is None  # a run is not cut at its stale readings
    assert found.events == ()
    assert isclose(found.curve.total_j, 999.0, rel_tol=0.01)


def test_a_stuck_power_sensor_is_said_when_the_counter_disagrees():
    raw = np.cumsum(np.tile([1_000_000.0, 3_000_000.0], 300))
    counter = polled(raw, channel=counter_channel())
    power = steady_power(6, watts=90)
    power = readings(power.channel, power.t_ns, np.full(len(power), 90_000.0))
    meter = meter_of(counter.channel, power.channel)
    codes = {e.code for e in build_metered_curve(meter, recording_of(meter, counter, power)).events}
    assert codes == {"POWER_FROZEN", "CROSS_CHECK"}


def test_power_that_goes_silent_is_unknown_not_zero():
    power = steady_power(10)
    keep = (power.t_ns < 3e9) | (power.t_ns > 7e9)
    power = readings(power.channel, power.t_ns[keep], power.raw[keep])
    meter = meter_of(power.channel)
    found = build_metered_curve(meter, recording_of(meter, power))
    assert isclose(found.curve.total_j, 600.0, rel_tol=0.01)
    assert found.unknown_between(0, int(10e9)) > 3.9e9
    assert "SAMPLE_GAP" in {e.code for e in found.events}


@given(st.integers(0, 500))
def test_a_read_that_hung_is_of_no_known_instant_and_costs_no_joule(at):
    """An edge of a run is read in the user's process while the sampler goes on: it comes back two seconds later."""
    t_ns = np.arange(0, 5001, 10) * MS
    late_ns = np.full(len(t_ns) + 1, MS // 10)
    late_ns[at] = 2000 * MS
    counter = replace(
        readings(counter_channel(), np.insert(t_ns, at, t_ns[at]), np.insert(t_ns * 0.1, at, (t_ns[at] + 1e9) * 0.1)),
        late_ns=late_ns,
    )
    meter = meter_of(counter.channel)
    found = build_metered_curve(meter, recording_of(meter, counter))
    assert [e.code for e in found.events] == ["COUNTER_LATE"]
    assert isclose(found.curve.total_j, 500.0, rel_tol=1e-12)


def test_a_run_that_ends_while_a_slow_counter_hangs_is_cut_at_its_own_end():
    """100 W, published every 100 ms, polled every 10; a read from 4 s on takes 2 s and tells what was at its end."""
    channel = counter_channel(modulus=550_000_000)  # it wraps in the hang
    t_ns = np.concatenate((np.arange(0, 4000, 10), [5000], np.arange(6010, 7000, 10))) * MS
    told_ns = np.where(t_ns == 5000 * MS, 5950 * MS, t_ns) // (100 * MS) * (100 * MS)
    late_ns = np.where(t_ns == 5000 * MS, 2000 * MS, MS // 10)
    counter = replace(readings(channel, t_ns, told_ns // 10 % channel.modulus), late_ns=late_ns)
    meter = meter_of(channel)
    trace = trace_from_spans([Span("a", "forward", 1000 * MS, 5200 * MS)])
    ledger = attribute_recording(recording_of(meter, counter), trace, 1000 * MS, 5200 * MS).ledgers[0]
    assert isclose(ledger.energy_j, 420.0, abs_tol=3 * ledger.energy_u_j)
    wraps_raw = ledger.counter_wraps * channel.modulus
    counted_j = (ledger.counter_end_raw - ledger.counter_start_raw + wraps_raw) * channel.scale
    assert isclose(counted_j, 300.0, abs_tol=10.0)  # from the first reading of the run to the last one before the hang


def test_zero_watts_of_a_gpu_is_a_missing_reading():
    power = steady_power(5)
    raw = power.raw.copy()
    raw[100:110] = 0
    meter = meter_of(power.channel)
    found = build_metered_curve(meter, recording_of(meter, readings(power.channel, power.t_ns, raw)))
    assert isclose(found.curve.total_j, 498.0, rel_tol=1e-3)


def test_flat_stretches_before_a_burst_stay_flat():
    """Dropping equal readings before a trapezoid makes a ramp of them: 60 % too much, seen in the field."""
    channel = power_channel()
    t = np.arange(0, 2000, 20) * MS
    watts = np.where((t // MS) % 1000 < 900, 100.0, 600.0)
    meter = meter_of(channel)
    found = build_metered_curve(meter, recording_of(meter, readings(channel, t, watts * 1e3)))
    assert isclose(found.curve.total_j, 2 * (0.9 * 100 + 0.1 * 600), rel_tol=0.06)


def test_one_reading_is_unavailable_not_zero():
    meter = meter_of(counter_channel())
    assert isinstance(
        build_metered_curve(meter, recording_of(meter, polled([5.0], channel=meter.channels[0]))), Unavailable
    )


def test_a_jump_that_no_device_can_draw_is_bridged_and_said():
    raw = np.arange(200) * 400_000.0  # 40 W
    raw[100:] += 250e9  # 250 kJ between two polls
    found = unwrap_counter(polled(raw, channel=counter_channel()), None)
    assert isclose(found.energy_j[-1], 199 * 0.4, rel_tol=0.01)
    assert [event.code for event in found.events] == ["COUNTER_JUMP"]


def test_a_silence_in_which_the_counter_may_have_gone_round_is_not_known():
    t_ms = np.concatenate((np.arange(100) * 10, 3000 + np.arange(100) * 10))
    raw = (t_ms * 40_000.0) % 30e6  # 40 W, round every 0.75 s; nobody looked for two seconds
    series = readings(counter_channel(modulus=30_000_000), t_ms * MS, raw)
    meter = meter_of(series.channel)
    found = build_metered_curve(meter, recording_of(meter, series))
    assert found.curve.silent == ((990 * MS, 3000 * MS),)
    assert "COUNTER_UNSURE" in [event.code for event in found.events]
    assert np.isnan(found.curve.power_w()).sum() == 1
    assert not found.curve.is_metered(500 * MS, 3500 * MS)
    assert found.curve.is_metered(100 * MS, 900 * MS)


def test_a_silent_power_sensor_leaves_a_hole_and_no_zero():
    t_ms = np.concatenate((np.arange(50) * 20, 5000 + np.arange(50) * 20))
    power = readings(power_channel(), t_ms * MS, np.full(100, 100e3) + np.arange(100) % 2)
    meter = meter_of(power.channel)
    curve = build_metered_curve(meter, recording_of(meter, power)).curve
    assert curve.silent == ((980 * MS, 5000 * MS),)
    assert np.isnan(curve.power_w()[49])
    assert curve.clip(2000 * MS, 5500 * MS).silent == ((2000 * MS, 5000 * MS),)


@given(st.integers(5, 90), st.integers(1, 60), st.sampled_from([0.0, -5.0, 2.0**64 - 1, 1e30, 7e12]))
def test_readings_from_which_a_counter_comes_back_cost_nothing(first, count, said):
    raw = 1e9 + np.arange(200) * 1_000_000.0
    raw[first : first + count] = said
    found = unwrap_counter(polled(raw, channel=counter_channel(modulus=262_143_328_911)), None)
    assert isclose(found.poll_j[-1], 199.0, rel_tol=1e-9)
    assert [e.code for e in found.events] == ["COUNTER_JUMP"]


def test_a_reset_in_a_silence_of_seconds_is_unknown_energy_with_and_without_a_power_sensor():
    raw = np.arange(1000) * 1_000_000.0
    raw[500:] -= raw[500]
    counter, power = polled(raw, channel=counter_channel()), steady_power(10)
    gap = (3e9, 7e9)
    silent = [readings(s.channel, s.t_ns[k], s.raw[k]) for s in (counter, power) for k in [_outside(s.t_ns, *gap)]]
    for heard in (silent, silent[:1]):
        meter = meter_of(*(s.channel for s in heard))
        found = build_metered_curve(meter, recording_of(meter, *heard))
        assert isclose(found.curve.total_j, 600.0, rel_tol=0.01)
        assert 3.9e9 < found.unknown_between(0, int(10e9)) < 4.1e9
        assert {e.code for e in found.events} == {"COUNTER_LOST"}
        assert np.isnan(found.curve.power_w()).sum() == 1
        assert found.curve.cross_check_j is None  # half of the power checks nothing


def _outside(t_ns, start_ns, end_ns):
    return (t_ns < start_ns) | (t_ns > end_ns)


def test_a_counter_that_stands_still_with_nothing_beside_it_is_unknown_from_then_on():
    raw = np.arange(1000) * 1_000_000.0
    raw[400:] = raw[400]
    counter = polled(raw, channel=counter_channel())
    found = unwrap_counter(counter, None)
    assert found.silent == ((int(counter.t_ns[400]), int(counter.t_ns[-1])),)
    assert isclose(found.energy_j[-1], 400.0, rel_tol=0.01)
    assert [e.code for e in found.events] == ["COUNTER_FROZEN"]


def test_a_counter_that_makes_up_for_standing_still_is_a_straight_line_over_it():
    raw = np.arange(1000) * 1_000_000.0
    raw[400:800] = raw[400]
    found = unwrap_counter(polled(raw, channel=counter_channel()), None)
    assert found.silent == ()
    assert isclose(found.energy_j[-1], 999.0, rel_tol=1e-6)
    assert isclose(np.interp(6e9, found.t_ns, found.energy_j), 600.0, rel_tol=0.01)
    assert [e.code for e in found.events] == ["COUNTER_FROZEN"]
