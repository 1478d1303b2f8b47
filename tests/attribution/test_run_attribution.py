from dataclasses import replace
from math import fsum, isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.attribution.test_owned_intervals import nested
from tests.support.examples import examples
from tests.support.worlds import MS, World, counter_channel, meter_of, power_channel, readings, recording_of
from torchwatt.attribution.host_attribution import merge_constant_intervals
from torchwatt.attribution.run_attribution import attribute_recording
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.meter import Channel
from torchwatt.core.terms import IDLE, OUTSIDE, UNATTRIBUTED, Domain
from torchwatt.core.trace import Span, trace_from_spans


def ledger_of(world, recording=None, trace=None):
    found = attribute_recording(recording or world.recording(), trace or world.trace, 0, world.end_ns)
    assert len(found.ledgers) == 1
    return found.ledgers[0]


def by_layer(ledger):
    return {entry.fqn: entry for entry in ledger.entries}


@given(nested(), nested(thread=1), st.lists(st.integers(0, 9_000_000), min_size=2, max_size=30).filter(any))
def test_no_joule_is_lost_or_made(one, two, steps):
    channel = counter_channel()
    t = np.linspace(0, 30, len(steps) + 1).round(6)  # 15 ms apart at most: not a slow counter
    raw = np.concatenate(([0], np.cumsum(steps)))
    meter = meter_of(channel)
    recording = recording_of(meter, readings(channel, (t * MS).astype(np.int64), raw))
    spans = [replace(s, start_ns=s.start_ns * MS, end_ns=s.end_ns * MS) for s in [*one, *two]]
    ledger = attribute_recording(recording, trace_from_spans(spans), 0, 30 * MS).ledgers[0]
    metered_j = (ledger.counter_end_raw - ledger.counter_start_raw) * 1e-6
    assert isclose(fsum(e.energy_self_j for e in ledger.entries), metered_j, rel_tol=1e-9, abs_tol=1e-12)
    assert all(e.energy_self_j >= 0 for e in ledger.entries)


@given(st.integers(0, 5), st.integers(95, 99), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_what_ran_while_a_meter_did_not_move_is_not_booked_as_nothing(first, last, still_before, still_after, quiet):
    """At its ends a run is cut at readings, and the last of them may repeat what the one before said."""
    channel = counter_channel()
    t = np.arange(0, 101) * MS
    moved = np.clip(t, still_before * MS, t[-1] - still_after * MS) - still_before * MS
    rest = [] if quiet else [Span("b", "forward", (last - 40) * MS, last * MS)]
    spans = [Span("a", "forward", first * MS, (last - 40) * MS), *rest]
    meter = meter_of(channel)
    ledger = attribute_recording(
        recording_of(meter, readings(channel, t, moved * 4e-2)), trace_from_spans(spans), 0, 100 * MS
    ).ledgers[0]
    nothing = [entry for entry in ledger.entries if entry.time_self_s > 0 and entry.energy_self_j == 0]
    assert not nothing
    assert isclose(fsum(e.time_self_s for e in ledger.entries), 0.1, rel_tol=1e-9)
    assert isclose(ledger.energy_j, moved[-1] * 4e-8, rel_tol=1e-9)


@given(
    st.lists(st.sampled_from([0, 0, 1, 5]), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 4)), max_size=2),
)
def test_a_meter_moves_in_every_stretch_in_which_it_moves_at_all(moves, silences):
    t_ns = 10 * np.arange(len(moves) + 1)
    energy_j = np.concatenate(([0.0], np.cumsum(moves, dtype=np.float64)))
    silent = tuple((10 * first, 10 * (first + n)) for first, n in silences)
    curve = EnergyCurve(Domain("cpu", 0), t_ns, energy_j, "counter", "measured", silent=silent)
    found = merge_constant_intervals(curve)
    assert (found.start_ns, found.end_ns, found.total_j) == (curve.start_ns, curve.end_ns, curve.total_j)
    assert found.unheard_ns() == curve.unheard_ns()
    assert set(zip(found.t_ns, found.energy_j, strict=True)) <= set(zip(t_ns, energy_j, strict=True))
    edges = [curve.start_ns, *(t for pair in curve.unheard_ns() for t in pair), curve.end_ns]
    for lo, hi in zip(edges[::2], edges[1::2], strict=True):
        inside = (found.t_ns >= lo) & (found.t_ns <= hi)
        rises = np.diff(found.energy_j[inside])
        assert (rises > 0).all() or not rises.any()


@examples(10)
@given(st.integers(-(10**17), 10**17), st.randoms())
def test_clock_origin_and_span_order_do_not_matter(shift, random):
    world = World([40, 10], [20, 20], steps=40)
    recording = world.recording()
    moved = replace(recording, series=tuple(replace(s, t_ns=s.t_ns + shift) for s in recording.series))
    spans = [replace(s, start_ns=s.start_ns + shift, end_ns=s.end_ns + shift) for s in world.spans]
    random.shuffle(spans)
    one = ledger_of(world, recording)
    two = attribute_recording(moved, trace_from_spans(spans), shift, shift + world.end_ns).ledgers[0]
    for fqn, entry in by_layer(one).items():
        assert isclose(by_layer(two)[fqn].energy_self_j, entry.energy_self_j, rel_tol=1e-9)


def test_a_wrapped_counter_gives_the_same_books():
    world = World([40, 10], [20, 20], steps=40)
    plain = by_layer(ledger_of(world))
    wrapped = ledger_of(world, world.recording(modulus=9_000_000, start_uj=8_000_000))
    assert wrapped.counter_wraps
    for fqn, entry in by_layer(wrapped).items():
        assert isclose(entry.energy_self_j, plain[fqn].energy_self_j, rel_tol=1e-6)


def test_equal_time_unequal_power_is_told_apart_where_time_share_is_60_percent_off():
    # static 15 W; dynamic 40 W and 10 W: time share would book 40 W to both, 60 % too much to the second.
    world = World([55, 25], [25, 25], steps=40, gap_w=15)
    ledger = ledger_of(world, world.recording(noise_uj=2_000))
    for fqn, truth_j in zip(["layer0", "layer1"], world.truth_j(), strict=True):
        assert isclose(by_layer(ledger)[fqn].energy_self_j, truth_j, rel_tol=0.05)
    assert {e.method for e in ledger.entries} == {"fit"}


def test_the_systematic_bands_hold_the_truth():
    inside, total = 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        world = World(rng.uniform(20, 80, 8), rng.uniform(3, 30, 8), steps=60, seed=seed)
        recording = world.recording(noise_uj=10_000, seed=seed)
        exact = replace(recording.meters[0], accuracy_rel=(0.0, 0.0))
        ledger = ledger_of(world, replace(recording, meters=(exact,)))
        for i, truth_j in enumerate(world.truth_j()):
            entry = by_layer(ledger)[f"layer{i}"]
            inside += entry.energy_systematic_lo_j <= truth_j <= entry.energy_systematic_hi_j
            total += 1
    assert 0.80 <= inside / total <= 0.99


def test_a_stale_sensor_is_found_and_undone():
    """A tree that publishes every 10 ms answers with joules that are 5 ms old on average."""
    world = World([55, 25], [25, 25], steps=60, gap_w=15)
    fresh = world.recording(period_ms=9.0)
    series = fresh.series[0]
    stale = np.floor(world.energy_at((series.t_ns - 1) // (10 * MS) * 10 * MS) * 1e6)
    recording = replace(fresh, series=(replace(series, raw=stale),))
    ledger = ledger_of(world, recording)
    for fqn, truth_j in zip(["layer0", "layer1"], world.truth_j(), strict=True):
        assert isclose(by_layer(ledger)[fqn].energy_self_j, truth_j, rel_tol=0.06)


def test_what_the_readings_cannot_tell_apart_is_time_share_and_says_so():
    world = World([30, 30], [0.5, 0.5], steps=400, gap_ms=0.1, gap_w=30)
    recording = world.recording(noise_uj=30_000)
    exact = replace(recording.meters[0], accuracy_rel=(0.0, 0.0))
    ledger = attribute_recording(replace(recording, meters=(exact,)), world.trace, 0, world.end_ns).ledgers[0]
    assert {e.method for e in ledger.entries} == {"time_share"}
    assert "share of time" in ledger.sentence
    layer = by_layer(ledger)["layer0"]
    # Another repeat shares time as well; a meter that sees the layer by itself may say something else.
    assert layer.energy_self_hi_j - layer.energy_self_lo_j < 0.5 * layer.energy_self_j
    assert layer.energy_systematic_hi_j - layer.energy_systematic_lo_j > 0.6 * layer.energy_self_j


def test_gaps_are_idle_outside_or_unattributed():
    spans = [Span("a", "forward", 100 * MS, 200 * MS), Span("a", "forward", 700 * MS, 800 * MS)]
    spans += [Span("a", "forward", 820 * MS, 900 * MS)]
    channel = counter_channel()
    t = np.arange(0, 1001, 10) * MS
    cpu = Channel(Domain("process"), "process_cpu", "gauge", "s", 1.0, 50 * MS, "os")
    busy_s = np.interp(t, [0, 200 * MS, 700 * MS, 1000 * MS], [0, 0.2, 0.2, 0.5])
    meter = meter_of(channel)
    recording = recording_of(meter, readings(channel, t, t * 1e-3), readings(cpu, t, busy_s))
    found = by_layer(attribute_recording(recording, trace_from_spans(spans), 0, 1000 * MS).ledgers[0])
    assert isclose(found[IDLE].time_self_s, 0.5, rel_tol=1e-6)
    assert isclose(found[UNATTRIBUTED].time_self_s, 0.02, rel_tol=1e-6)
    assert isclose(found[OUTSIDE].time_self_s, 0.2, rel_tol=1e-6)


def test_static_energy_comes_from_the_quiet_baseline_only():
    world = World([55, 25], [25, 25], steps=20, gap_w=15)
    assert all(e.energy_static_j is None for e in ledger_of(world).entries)
    quiet_ns = 300 * MS
    series = world.recording().series[0]
    t = np.concatenate((np.arange(0, quiet_ns, 10 * MS), series.t_ns + quiet_ns))
    raw = np.interp(t, [0, quiet_ns], [0, 15e6 * 0.3])
    raw[30:] += series.raw
    spans = [replace(s, start_ns=s.start_ns + quiet_ns, end_ns=s.end_ns + quiet_ns) for s in world.spans]
    meter = meter_of(series.channel)
    recording = recording_of(meter, readings(series.channel, t, raw))
    ledger = attribute_recording(recording, trace_from_spans(spans), quiet_ns, quiet_ns + world.end_ns).ledgers[0]
    assert isclose(ledger.static_w, 15.0, rel_tol=0.01)
    for entry in ledger.entries:
        assert isclose(entry.energy_static_j + entry.energy_dynamic_j, entry.energy_self_j)


def test_a_silence_in_the_quiet_baseline_is_no_second_without_power():
    channel = power_channel(domain=Domain("cpu", 0))
    t = np.concatenate((np.arange(0, 500, 20), np.arange(4500, 6001, 20))) * MS
    meter = meter_of(channel)
    recording = recording_of(meter, readings(channel, t, np.where(t < 5000 * MS, 15_000, 40_000)))
    trace = trace_from_spans([Span("a", "forward", 5000 * MS, 6000 * MS)])
    assert isclose(attribute_recording(recording, trace, 5000 * MS, 6000 * MS).ledgers[0].static_w, 15.0, rel_tol=0.02)


def test_joules_of_a_silence_in_the_quiet_baseline_are_no_power_of_the_rest():
    channel = counter_channel(modulus=4_000_001)  # at 15 W it may go round twice in half a second
    t = np.concatenate((np.arange(0, 400, 5), np.arange(900, 2001, 5))) * MS
    meter = meter_of(channel)
    raw_uj = np.interp(t, [0, 1500 * MS, 2000 * MS], [0, 15e6 * 1.5, 15e6 * 1.5 + 40e6 * 0.5]).astype(np.int64)
    recording = recording_of(meter, readings(channel, t, raw_uj % channel.modulus))
    trace = trace_from_spans([Span("a", "forward", 1500 * MS, 2000 * MS)])
    assert isclose(attribute_recording(recording, trace, 1500 * MS, 2000 * MS).ledgers[0].static_w, 15.0, rel_tol=0.01)


def test_a_gpu_without_a_device_timeline_is_not_split_by_host_spans():
    gpu = Domain("gpu", 0)
    channel = power_channel(domain=gpu)
    t = np.arange(0, 1000, 20) * MS
    meter = meter_of(channel)
    recording = recording_of(meter, readings(channel, t, 100_000 + np.arange(len(t))))
    found = attribute_recording(recording, trace_from_spans([Span("a", "forward", 0, 900 * MS)]), 0, 980 * MS)
    assert [e.fqn for e in found.ledgers[0].entries] == [UNATTRIBUTED]
    assert [e.code for e in found.events if e.code != "PART_TIME_POWER"] == ["NO_DEVICE_TIMELINE"]


def test_the_total_is_the_difference_of_two_readings_that_can_be_looked_up():
    world = World([30], [10], steps=100)  # a short run is dated to its own ends
    recording = world.recording()
    ledger = attribute_recording(recording, world.trace, 3 * MS, world.end_ns - 3 * MS).ledgers[0]
    raw_j = (ledger.counter_end_raw - ledger.counter_start_raw) * ledger.counter_unit_j
    assert raw_j == pytest.approx(ledger.energy_j, rel=1e-12)


def test_a_model_of_load_is_never_fitted_to_layers():
    world = World([55, 25], [25, 25], steps=40, gap_w=15)
    measured = world.recording()
    modelled = replace(measured, meters=(replace(measured.meters[0], provenance="modelled"),))
    ledger = ledger_of(world, modelled)
    assert {(e.method, e.provenance) for e in ledger.entries} == {("load_model", "modelled")}
    assert "the load model has no per-layer information" in ledger.sentence
