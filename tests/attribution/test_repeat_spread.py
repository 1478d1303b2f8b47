"""Laws of what another repeat would give, and of alike modules that share their strength."""

from dataclasses import replace
from itertools import pairwise, permutations
from math import fsum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.worlds import MS, World, meter_of
from torchwatt.attribution.accuracy_bands import add_band, add_bands
from torchwatt.attribution.host_attribution import group_alike_slots, shrink_alike_energy
from torchwatt.attribution.owned_intervals import OwnedIntervals, compute_exposure
from torchwatt.attribution.repeat_spread import build_step_grid, estimate_repeat_spread, flicker_ratio, student_quantile
from torchwatt.attribution.run_attribution import attribute_recording
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.ledger import Entry
from torchwatt.core.terms import OUTSIDE, UNATTRIBUTED, Domain, Slot
from torchwatt.core.trace import EMPTY_TRACE, ModuleInfo, trace_from_spans
from torchwatt.core.units import Z90

CPU = Domain("cpu", 0)


def stepped(watts, durations_ms, *, steps=200, seed=0, scale=1.0):
    """Make a world whose steps are marked; `scale` is how much longer all of them take."""
    world = World(watts, [scale * ms for ms in durations_ms], steps=steps, seed=seed, jitter=0.1)
    firsts = world.edges[:: len(durations_ms) + 1]
    marks = tuple(zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True))
    return world, replace(world.trace, steps=marks)


def ledger_of(world, trace, **recorded):
    return attribute_recording(world.recording(**recorded), trace, 0, world.end_ns).ledgers[0]


def test_the_total_of_another_repeat_lies_in_the_interval():
    """Repeats differ as this run's own parts do: each runs at a speed of its own, which changes within it as well."""
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(12):
        speed = 1.0 + 0.05 * rng.standard_normal(200)  # of blocks of steps: slow changes go on within a run
        runs.append(_drifting(seed, np.repeat(speed[:10], 20) + 0.03 * rng.standard_normal()))
    ledgers = [ledger_of(world, trace) for world, trace in runs]
    hits = [a.energy_lo_j <= b.energy_j <= a.energy_hi_j for a, b in permutations(ledgers, 2)]
    assert 0.8 <= np.mean(hits) <= 1.0
    assert all(ledger.energy_hi_j - ledger.energy_lo_j < 0.5 * ledger.energy_j for ledger in ledgers)


def _drifting(seed, speed):
    world = World([40.0, 20.0], [5.0, 5.0], steps=len(speed), seed=seed, jitter=0.05)
    lengths = np.diff(world.edges) * np.repeat(speed, 3)
    world.edges = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    world.energy = np.concatenate(([0.0], np.cumsum(world.power * np.diff(world.edges) / 1e9)))
    world.spans = [
        replace(span, start_ns=int(world.edges[i // 2 * 3 + i % 2]), end_ns=int(world.edges[i // 2 * 3 + i % 2 + 1]))
        for i, span in enumerate(world.spans)
    ]
    firsts = world.edges[::3].tolist()
    return world, replace(world.trace, steps=tuple(pairwise(firsts)))


def test_a_slower_half_widens_the_interval_and_a_steady_run_has_a_narrow_one():
    steady = ledger_of(*_drifting(1, np.ones(200)))
    changed = ledger_of(*_drifting(1, np.repeat([1.0, 1.4], 100)))
    relative = [(x.energy_hi_j - x.energy_lo_j) / x.energy_j for x in (steady, changed)]
    assert relative[0] < 0.1
    assert relative[1] > 0.5


@given(st.integers(0, 2**32 - 1), st.integers(20, 120), st.integers(1, 3))
def test_intervals_hold_their_numbers_and_books_balance(seed, steps, layers):
    rng = np.random.default_rng(seed)
    world, trace = stepped(rng.uniform(10, 60, layers), rng.uniform(1, 20, layers), steps=steps, seed=seed)
    modules = tuple(ModuleInfo(f"layer{i}", "Linear") for i in range(layers))
    ledger = ledger_of(world, replace(trace, modules=modules), noise_uj=5_000, seed=seed)
    assert fsum(entry.energy_self_j for entry in ledger.entries) == pytest.approx(ledger.energy_j, rel=1e-9)
    known = {entry.energy_self_lo_j is not None for entry in ledger.entries}
    assert known == {ledger.energy_lo_j is not None}  # the total has an interval where its rows have one
    if ledger.energy_lo_j is None:
        return
    assert ledger.energy_lo_j <= ledger.energy_j <= ledger.energy_hi_j
    for entry in ledger.entries:
        assert 0 <= entry.energy_self_lo_j <= entry.energy_self_j <= entry.energy_self_hi_j


@given(
    st.integers(0, 2**32 - 1),
    st.integers(6, 60),
    st.floats(0.0, 0.6),
    st.floats(0.0, 0.6),
    st.floats(1.0, 40.0),
    st.floats(0.0, 30_000.0),
)
def test_no_row_may_use_more_than_its_total_may(seed, steps, before, after, scale, noise_uj):
    """A run of few steps with nothing traced before and after them, as imports and saving a checkpoint are."""
    rng = np.random.default_rng(seed)
    world, trace = stepped(rng.uniform(1, 60, 3), rng.uniform(0.1, 2, 3), steps=steps, seed=seed, scale=scale)
    first, last = (int(part * world.end_ns / 2) for part in (before, 2.0 - after))
    inside = [s for s in world.spans if s.start_ns >= first and s.end_ns <= last]
    marks = tuple((a, b) for a, b in trace.steps if a >= first and b <= last)
    recording = world.recording(noise_uj=noise_uj, seed=seed)
    meters = (replace(recording.meters[0], accuracy_rel=(-0.05, 0.05)),)
    found = attribute_recording(
        replace(recording, meters=meters), trace_from_spans(inside, steps=marks), 0, world.end_ns
    )
    for ledger in found.ledgers:
        systematic_hi_j = 1.05 * ledger.energy_j + Z90 * (ledger.energy_u_j or 0.0)
        for entry in ledger.entries:
            if ledger.energy_hi_j is not None:
                assert entry.energy_self_j <= entry.energy_self_hi_j <= ledger.energy_hi_j * (1 + 1e-9)
            assert 0 <= entry.energy_systematic_lo_j <= entry.energy_self_j * (1 + 1e-9)
            assert entry.energy_self_j <= entry.energy_systematic_hi_j * (1 + 1e-9)
            assert entry.energy_systematic_hi_j <= systematic_hi_j * (1 + 1e-9)


def test_what_comes_once_drifts_as_the_machine_does():
    """Of time outside of all steps a sliver lies between two of them: how slivers differ says nothing of the rest."""
    t_ns = np.arange(0, 2001) * 10 * MS
    watts = np.full(2000, 50.0)
    curve = EnergyCurve(CPU, t_ns, np.concatenate(([0.0], np.cumsum(watts) * 0.01)), "counter", "measured")
    steps = tuple(pairwise(range(5_000 * MS, 20_000 * MS, 500 * MS)))
    edges = [0, *(a for a, _ in steps), steps[-1][1]]
    edges.insert(10, edges[9] + MS)  # the sliver
    slot = np.ones(len(edges) - 1, dtype=np.int64)
    slot[[0, 9]] = 0
    own = np.array(edges, dtype=np.int64)
    cut = OwnedIntervals(own[:-1], own[1:], slot, slot < 0, np.ones(len(slot)))
    grid = build_step_grid(curve, replace(EMPTY_TRACE, steps=steps), 2)
    slots = (Slot(OUTSIDE, "other"), Slot("a", "forward"))
    spread = estimate_repeat_spread(
        compute_exposure(cut, grid.t_ns, curve.at(grid.t_ns), 2), np.full(2, 50.0), grid, slots, {}
    )
    assert spread.half_j(np.zeros(2), np.zeros(2))[0] < 0.1 * 250.0


@pytest.mark.parametrize(("blocks", "apart"), [(4, 3), (12, 1), (12, 40)])
def test_flicker_noise_differs_so_much_more_between_runs_than_between_the_blocks_of_one(blocks, apart):
    """Noise of equal power in each octave, made here from white noise, cut into runs and those into blocks."""
    rng = np.random.default_rng(0)
    size, block = 2**16, 16
    shape = np.concatenate(([0.0], np.fft.rfftfreq(size)[1:] ** -0.5))
    between, within = [], []
    for _ in range(40):
        noise = np.fft.irfft(shape * (rng.standard_normal(len(shape)) + 1j * rng.standard_normal(len(shape))))
        runs = noise[: size // (block * blocks) * block * blocks].reshape(-1, blocks, block).mean(axis=2)
        mean = runs.mean(axis=1)
        between.append(np.mean((mean[apart:] - mean[:-apart]) ** 2) / 2)
        within.append(np.mean(runs.var(axis=1, ddof=1)))
    assert flicker_ratio(apart, blocks) == pytest.approx(np.mean(between) / np.mean(within), rel=0.1)


def test_the_interval_of_a_short_run_is_wider_than_that_of_a_long_one_that_varies_as_much():
    speed = np.repeat(1.0 + 0.05 * np.random.default_rng(0).standard_normal(20), 10)
    runs = [ledger_of(*_drifting(1, scale * speed)) for scale in (1.0, 40.0)]
    short, long = ((x.energy_hi_j - x.energy_lo_j) / x.energy_j for x in runs)
    assert 1.2 * long < short < 3.0 * long


def test_a_run_that_is_too_short_has_no_interval_rather_than_a_narrow_one():
    curve = EnergyCurve(CPU, np.array([0, 10, 20]) * MS, np.array([0.0, 1.0, 2.0]), "counter", "measured")
    assert not build_step_grid(curve, EMPTY_TRACE, 1).known
    found = attribute_recording(
        World([30.0], [4.0], steps=3).recording(), World([30.0], [4.0], steps=3).trace, 0, 15 * MS
    )
    assert all(x.energy_lo_j is None and x.entries[0].energy_self_lo_j is None for x in found.ledgers)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**8)), min_size=0, max_size=40), st.data())
def test_a_grid_covers_its_curve_and_gives_blocks_only_to_steps(gaps, data):
    t_ns = np.arange(0, 60) * 10 * MS
    curve = EnergyCurve(CPU, t_ns, np.arange(60) / 10, "counter", "measured")
    edges = sorted(data.draw(st.sets(st.integers(0, 600 * MS), min_size=2, max_size=40)))
    steps = tuple(pairwise(edges))
    stages = tuple(data.draw(st.sampled_from(["train", "validation"])) for _ in steps)
    grid = build_step_grid(
        curve, replace(EMPTY_TRACE, steps=steps, step_stages=stages), data.draw(st.sampled_from([1, 10**6]))
    )
    assert grid.t_ns[0] == curve.start_ns
    assert grid.t_ns[-1] == curve.end_ns
    assert np.all(np.diff(grid.t_ns) > 0)
    assert len(grid.block) == len(grid.steps) == len(grid.t_ns) - 1
    assert grid.block.max(initial=-1) < len(grid.stage)


def test_very_many_steps_of_very_many_slots_are_taken_together():
    t_ns = np.arange(0, 4001) * 10 * MS
    curve = EnergyCurve(CPU, t_ns, np.arange(4001) / 10, "counter", "measured")
    steps = tuple(pairwise(t_ns.tolist()))
    trace = replace(EMPTY_TRACE, steps=steps, step_stages=("train",) * 3000 + ("validation",) * 1000)
    grid = build_step_grid(curve, trace, 10_000)
    assert len(grid.block) <= 201
    assert grid.steps[:-1].sum() == pytest.approx(4000, abs=20)
    assert len(set(grid.stage.tolist())) == 2
    assert len(build_step_grid(curve, trace, 100).block) >= 4000


joules = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=8)


@given(joules, st.data())
def test_alike_modules_keep_their_sum(values, data):
    energy_j = np.array(values)
    sd_j = np.array([data.draw(st.floats(1e-3, 10.0)) * value for value in values])
    group = np.zeros(len(values), dtype=np.int64)
    after_j, after_sd_j = shrink_alike_energy(energy_j, sd_j, np.ones(len(values)), group)
    assert fsum(after_j) == pytest.approx(fsum(values), rel=1e-9)
    assert np.all(after_j > 0)
    assert np.all(np.isfinite(after_sd_j))


@given(st.floats(0.01, 1e4), st.floats(0.01, 0.5), st.integers(2, 8))
def test_equal_evidence_gives_equal_rows(energy_j, relative, count):
    group = np.zeros(count, dtype=np.int64)
    same = np.full(count, energy_j)
    after_j, after_sd_j = shrink_alike_energy(same, relative * same, np.full(count, 7.0), group)
    assert np.ptp(after_j) <= 1e-12 * energy_j
    assert np.ptp(after_sd_j) <= 1e-12 * energy_j


def test_noise_is_shared_and_a_real_difference_stays():
    group, calls = np.zeros(4, dtype=np.int64), np.full(4, 100.0)
    noisy, _ = shrink_alike_energy(np.array([1.76, 0.75, 1.2, 1.1]), np.full(4, 0.5), calls, group)
    assert np.ptp(noisy) < 0.05
    real, _ = shrink_alike_energy(np.array([8.0, 1.0, 1.0, 1.0]), np.full(4, 0.02), calls, group)
    assert real == pytest.approx([8.0, 1.0, 1.0, 1.0], rel=0.01)


@pytest.mark.parametrize("count", [2, 3, 4, 12, 48])
def test_equal_modules_come_out_equal_in_spite_of_noise(count):
    rng, group = np.random.default_rng(count), np.zeros(count, dtype=np.int64)
    apart = []
    for _ in range(200):
        noisy = 1.0 + 0.15 * rng.standard_normal(count)
        after_j, after_sd_j = shrink_alike_energy(noisy, np.full(count, 0.15), np.ones(count), group)
        apart.append(after_j.max() / after_j.min())
        assert np.all(after_sd_j > 0.1 / np.sqrt(count))
    assert np.mean(np.array(apart) <= 1.1) >= 0.85  # before they shared: none of 48, one in five of two


@given(st.integers(3, 24), st.floats(0.01, 0.05), st.integers(0, 2**32 - 1))
def test_one_of_equal_modules_that_does_half_the_work_stays_at_half(count, relative, seed):
    """The first of some equal layers computes no gradient of its input."""
    rng = np.random.default_rng(seed)
    true_j = np.array([0.5, *np.ones(count - 1)])
    noisy = true_j + relative * np.clip(rng.standard_normal(count), -2, 2)
    after_j, _ = shrink_alike_energy(noisy, np.full(count, relative), np.ones(count), np.zeros(count, dtype=np.int64))
    assert after_j[0] == pytest.approx(noisy[0], rel=1e-9)
    assert after_j[1:].max() <= 1.01 * max(noisy[1:].max() / noisy[1:].min(), 1.0) * after_j[1:].min()


def test_alike_modules_that_ran_more_often_get_more():
    after_j, _ = shrink_alike_energy(
        np.array([9.0, 1.5]), np.array([3.0, 1.0]), np.array([30.0, 5.0]), np.zeros(2, dtype=np.int64)
    )
    assert after_j[0] / after_j[1] == pytest.approx(6.0)
    unknown, _ = shrink_alike_energy(
        np.array([9.0, 1.5]), np.array([3.0, 1.0]), np.array([30.0, 0.0]), np.zeros(2, dtype=np.int64)
    )
    assert unknown.tolist() == [9.0, 1.5]


def test_alike_is_class_size_phase_and_place():
    modules = [ModuleInfo(f"blocks.{i}.fc", "Linear", 10, 40) for i in range(3)]
    modules += [ModuleInfo("blocks.3.fc", "Linear", 20, 80), ModuleInfo("head", "Linear", 10, 40)]
    slots = [Slot(m.fqn, "forward") for m in modules]
    slots += [Slot("blocks.0.fc", "backward"), Slot(UNATTRIBUTED, "other"), Slot("blocks.1.fc2x", "forward")]
    assert group_alike_slots(slots, modules).tolist() == [0, 0, 0, -1, -1, -1, -1, -1]


@given(st.floats(0, 1e6), st.floats(-1, 0), st.floats(0, 1), st.floats(0, 1e3))
def test_a_systematic_band_holds_its_number_and_is_never_narrower_than_the_meters(own_j, lo, hi, unknown_j):
    entry = Entry(CPU, "a", "forward", own_j, None, None, None, None, 1.0, 1, "fit", "apportioned")
    found = add_band(entry, (lo, hi), unknown_j)
    assert found.energy_systematic_lo_j <= min(own_j * (1 + lo), own_j) + 1e-9 * own_j
    assert found.energy_systematic_hi_j >= max(own_j * (1 + hi), own_j) - 1e-9 * own_j
    exact = add_band(entry, None)
    assert (exact.energy_systematic_lo_j, exact.energy_systematic_hi_j) == (own_j, own_j)
    assert add_band(replace(entry, method="time_share"), None).energy_systematic_lo_j is None
    split = add_band(entry, None, unknown_j + 1)  # a meter without a band: what the split leaves open is known
    assert split.energy_systematic_hi_j - own_j == pytest.approx(unknown_j + 1)


def test_bands_that_are_there_stay_where_they_are_as_wide_as_the_meters():
    world, trace = stepped([30.0, 40.0], [5.0, 5.0])
    recording = world.recording()
    meters = (replace(recording.meters[0], accuracy_rel=(-0.05, 0.05)),)
    found = attribute_recording(replace(recording, meters=meters), trace, 0, world.end_ns).ledgers
    assert add_bands(found, [meter_of(recording.series[0].channel, accuracy_rel=(-0.04, 0.04))]) == found
    # Another rank of a job may know less of the same meter.
    wider = add_bands(found, [meter_of(recording.series[0].channel, accuracy_rel=(-0.5, 0.6))])
    assert wider != found
    for entry in wider[0].entries:
        assert entry.energy_systematic_lo_j <= 0.5 * entry.energy_self_j * (1 + 1e-9)
        assert entry.energy_systematic_hi_j >= 1.6 * entry.energy_self_j * (1 - 1e-9)


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 2.353), (7, 1.895), (11, 1.796), (1e6, 1.645)])
def test_students_quantiles(freedom, quantile):
    assert float(student_quantile(freedom)) == pytest.approx(quantile, rel=0.01)
