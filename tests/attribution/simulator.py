"""A world whose watts are known: a GPU that runs a plan of kernels, and a power sensor that looks at it from afar.

Nothing here is shared with the estimator. Power is drawn on a 50 us grid; the sensor filters that grid numerically.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from torchwatt.core.meter import Channel, Meter, Recording, Series
from torchwatt.core.terms import POWER_SAMPLES, Domain, Slot
from torchwatt.core.trace import EMPTY_TRACE, Activity, Trace

GPU = Domain("gpu", 0)
GRID_S = 50e-6
ORIGIN_NS = 5_000_000_000_000  # clocks do not start at zero


@dataclass(frozen=True)
class Work:
    """One kernel of a step: `gap_s` of silence follows it."""

    fqn: str
    phase: str
    signature: str
    seconds: float
    watts: float
    gap_s: float = 2e-6


@dataclass(frozen=True)
class Plan:
    """A step, again and again. `period_s` locks the start of each step to a clock, `dither_s` loosens it again."""

    works: tuple[Work, ...]
    idle_w: float = 75.0
    pause_s: float = 0.015  # silence between steps
    period_s: float | None = None
    dither_s: float = 0.0
    duration_rel: float = 0.01
    power_rel: float = 0.01
    drift_rel: float = 0.01
    warmup_rel: float = 0.03
    overlap: float = 0.0  # share of kernels that a kernel of a side stream accompanies
    quiet_s: float = 4.0  # before the first step
    tail_s: float = 0.5  # recorded after the run, for slow counters


@dataclass(frozen=True)
class Sensor:
    """Publishes every `period_s` the mean over `window_s` of power behind a low-pass, polled every `poll_s`."""

    kind: str = "nvml_power_instant"
    model: str = "NVIDIA A100-PCIE-40GB"
    period_s: float = 0.1
    window_s: float = 0.025
    tau_s: float = 0.0
    lag_s: float = 0.0
    noise_rel: float = 0.01
    gain: float = 1.0
    offset_w: float = 0.0
    step_w: float = 0.001
    publish_jitter_s: float = 1e-4
    poll_s: float = 0.005
    poll_jitter: float = 0.5
    clock_s: float = 0.0  # how late the polls' clock is against the kernels'
    counter: bool = True
    ring_s: float | None = None  # the driver's own samples behind the same kernel, so far apart, with their times
    stamp_sd_s: float = 5e-4


@dataclass(frozen=True)
class Simulated:
    recording: Recording
    trace: Trace
    start_ns: int
    end_ns: int
    truth_j: dict[Slot, float]
    total_j: float
    idle_w: float
    publications_s: np.ndarray = field(repr=False)

    @property
    def activity(self) -> Activity:
        return self.trace.activities[0]


def simulate(plan: Plan, sensor: Sensor, *, minutes: float, seed: int) -> Simulated:
    rng = np.random.default_rng([seed, 77])
    start, end, which, marks = _schedule(plan, minutes * 60, rng)
    watts = np.array([w.watts for w in plan.works])[which]
    watts = watts * (1 + plan.power_rel * rng.standard_normal(len(which)))
    owner = which
    if plan.overlap:
        start, end, owner, watts, stream = _side_stream(plan, start, end, which, watts, rng)
    else:
        stream = np.zeros(len(start), dtype=np.int64)
    end_s = plan.quiet_s + minutes * 60
    total_s = end_s + plan.tail_s
    common = _drift(plan, total_s, rng)
    power = _power(plan, start, end, watts, stream, total_s) * common
    energy = np.concatenate(([0.0], np.cumsum(power) * GRID_S))
    truth = _truth(plan, start, end, owner, watts, stream, common)
    run = (plan.quiet_s, end_s)
    recording, at = _recording(power, energy, sensor, total_s, rng)
    total_j = float(np.diff(np.interp(run, np.arange(len(energy)) * GRID_S, energy))[0])
    trace = replace(EMPTY_TRACE, activities=(_activity(plan, start, end, owner, stream, marks),))
    return Simulated(recording, trace, _ns(run[0]), _ns(run[1]), truth, total_j, plan.idle_w, at)


def measure(start, end, watts, sensor, *, idle_w, total_s, seed):
    """Return what a sensor records of kernels that add to idle power, and cumulative joules on the grid of `GRID_S`."""
    power = _power(Plan((), idle_w=idle_w), start, end, watts, None, total_s)
    energy = np.concatenate(([0.0], np.cumsum(power) * GRID_S))
    recording, _ = _recording(power, energy, sensor, total_s, np.random.default_rng([seed, 78]))
    return recording, energy


def _ns(seconds):
    return (
        np.round(np.asarray(seconds) * 1e9).astype(np.int64) + ORIGIN_NS
        if np.ndim(seconds)
        else (round(seconds * 1e9) + ORIGIN_NS)
    )


def _schedule(plan, run_s, rng):
    """Return starts, ends and work indices of all kernels, and the starts of steps; seconds since the beginning."""
    seconds = np.array([w.seconds for w in plan.works])
    gaps = np.array([w.gap_s for w in plan.works])
    typical = seconds.sum() + gaps.sum() + plan.pause_s
    steps = int(run_s / (plan.period_s or typical)) + 50
    long = seconds * (1 + plan.duration_rel * rng.standard_normal((steps, len(seconds))).clip(-4, 4))
    span = np.cumsum(long + gaps, axis=1)
    inner = span - long - gaps
    pause = plan.pause_s * rng.uniform(0.7, 1.3, steps)
    extra = plan.dither_s * rng.uniform(0, 1, steps)
    length = np.full(steps, plan.period_s) if plan.period_s else span[:, -1] + pause
    marks = plan.quiet_s + np.concatenate(([0.0], np.cumsum(length + extra)[:-1]))
    start = marks[:, None] + inner
    end = start + long
    keep = end[:, -1] < plan.quiet_s + run_s
    which = np.broadcast_to(np.arange(len(seconds)), start.shape)[keep]
    return start[keep].ravel(), end[keep].ravel(), which.ravel(), marks[keep]


def _side_stream(plan, start, end, which, watts, rng):
    """Give some kernels a companion on another stream that begins a little later and may end a little later."""
    chosen = np.flatnonzero(rng.uniform(size=len(start)) < plan.overlap)
    long = (end - start)[chosen]
    s2 = start[chosen] + 0.3 * long
    e2 = s2 + long * rng.uniform(0.3, 0.6, len(chosen))
    w2 = plan.idle_w + 60.0 * (1 + 0.02 * rng.standard_normal(len(chosen)))
    order = np.argsort(np.concatenate((start, s2)), kind="stable")

    def both(a, b):
        return np.concatenate((a, b))[order]

    n = len(plan.works)
    stream = both(np.zeros(len(start), dtype=np.int64), np.ones(len(chosen), dtype=np.int64))
    return both(start, s2), both(end, e2), both(which, np.full(len(chosen), n)), both(watts, w2), stream


def _drift(plan, total_s, rng):
    """Return the common gain on the grid: warm-up and a slow random walk of a given standard deviation."""
    t = np.arange(round(total_s / GRID_S)) * GRID_S
    knots = np.arange(0, total_s + 20, 10.0)
    walk = np.cumsum(rng.standard_normal(len(knots)))
    walk = (walk - walk.mean()) / max(walk.std(), 1e-9)
    drift = 1 + plan.drift_rel * np.interp(t, knots, walk)
    return drift * (1 - plan.warmup_rel * np.exp(-np.maximum(t - plan.quiet_s, 0) / 20.0))


def _power(plan, start, end, watts, stream, total_s):
    """Draw power on the grid: idle, plus what every running kernel draws above it."""
    n = round(total_s / GRID_S)
    steps = np.zeros(n + 2)
    above = watts - plan.idle_w
    for at, sign in ((start, 1.0), (end, -1.0)):
        cell = np.floor(at / GRID_S).astype(np.int64)
        part = at / GRID_S - cell  # the step happens inside the cell: split it between this cell and the next
        np.add.at(steps, cell, sign * above * (1 - part))
        np.add.at(steps, cell + 1, sign * above * part)
    return plan.idle_w + np.cumsum(steps)[:n]


def _truth(plan, start, end, owner, watts, stream, common):
    """Joules of each slot: its dynamic power, and an equal share of the static power of the kernels that ran."""
    middle = common[np.minimum(((start + end) / 2 / GRID_S).astype(np.int64), len(common) - 1)]
    dynamic = (watts - plan.idle_w) * (end - start) * middle
    static = plan.idle_w * _equal_share(start, end, stream) * middle
    slots = [Slot(w.fqn, w.phase) for w in plan.works] + [Slot("side", "forward")]
    truth = {}
    for i, joules in enumerate(np.bincount(owner, dynamic + static, len(slots))):
        if joules:
            truth[slots[i]] = truth.get(slots[i], 0.0) + float(joules)
    return truth


def _equal_share(start, end, stream):
    """Return seconds of each kernel, those shared with a kernel of the other stream counted half."""
    share = end - start
    main, side = np.flatnonzero(stream == 0), np.flatnonzero(stream == 1)
    for a, b in ((main, side), (side, main)):
        if len(b):
            covered = np.zeros(2 * len(b) + 1)
            edges = np.stack((start[b], end[b]), axis=1).ravel()
            covered[1:] = np.cumsum(np.diff(edges, prepend=edges[0]) * (np.arange(2 * len(b)) % 2))
            both = np.interp(end[a], edges, covered[1:]) - np.interp(start[a], edges, covered[1:])
            share[a] -= both / 2
    return share


def _low_pass(power, tau_s):
    """First-order filter on the grid, block by block."""
    if tau_s <= 0:
        return power
    keep = np.exp(-GRID_S / tau_s)
    block = max(int(10 * tau_s / GRID_S), 1)
    padded = np.concatenate((power, np.full(-len(power) % block, power[-1]))).reshape(-1, block)
    growth = keep ** -np.arange(1, block + 1)
    inside = np.cumsum(padded * (1 - keep) * growth, axis=1) / growth
    out, state, fade = np.empty_like(padded), power[0], keep ** np.arange(1, block + 1)
    for i in range(len(padded)):
        out[i] = inside[i] + state * fade
        state = out[i, -1]
    return out.ravel()[: len(power)]


def _said(sensor, at, grid, seen, rng):
    """Return what the sensor says at some instants, of power that was low-passed and summed up to `seen` on a grid."""
    ends = at - sensor.lag_s
    mean_w = (np.interp(ends, grid, seen) - np.interp(ends - sensor.window_s, grid, seen)) / sensor.window_s
    said_w = sensor.gain * mean_w * (1 + sensor.noise_rel * rng.standard_normal(len(at))) + sensor.offset_w
    return np.round(said_w / sensor.step_w) * sensor.step_w


def _ring(sensor, total_s, grid, seen, rng):
    """Sample every `ring_s`, some ms early or late as drivers do, and stamp each sample nearly right."""
    at = np.arange(0.1, total_s - 0.1, sensor.ring_s)
    at = at + rng.uniform(-0.2, 0.2, len(at)) * sensor.ring_s
    channel = Channel(GPU, "power_fine", "power", "W", 1e-3, round(sensor.ring_s * 1e9), POWER_SAMPLES)
    t = _ns(at + sensor.clock_s + sensor.stamp_sd_s * rng.standard_normal(len(at)))
    return Series(channel, t, np.round(_said(sensor, at, grid, seen, rng) * 1e3), np.zeros_like(t))


def _recording(power, energy, sensor, total_s, rng):
    seen = np.concatenate(([0.0], np.cumsum(_low_pass(power, sensor.tau_s)) * GRID_S))
    grid = np.arange(len(seen)) * GRID_S
    first = sensor.window_s + sensor.lag_s + rng.uniform(0.02, 0.02 + sensor.period_s)
    at = np.arange(first, total_s, sensor.period_s)
    at = at + sensor.publish_jitter_s * rng.standard_normal(len(at))
    said_w = _said(sensor, at, grid, seen, rng)
    polls = np.arange(at[0] + 0.01, total_s, sensor.poll_s)
    polls = polls + sensor.poll_s * sensor.poll_jitter * rng.uniform(-1, 1, len(polls)) / 2
    held = said_w[np.maximum(np.searchsorted(at, polls, side="right") - 1, 0)]
    poll_ns = _ns(polls + sensor.clock_s)
    power_channel = Channel(GPU, "power", "power", "W", 1e-3, round(sensor.poll_s * 1e9), sensor.kind)
    series = [Series(power_channel, poll_ns, np.round(held * 1e3), np.zeros_like(poll_ns))]
    if sensor.counter:
        channel = Channel(GPU, "energy", "counter", "J", 1e-3, round(sensor.poll_s * 1e9), "nvml_energy_counter")
        # Published every 100 ms on the kernels' clock: the total is not under test where the polls' clock is off.
        mj = np.floor(np.interp(np.floor(polls / 0.1) * 0.1, grid, energy) * 1e3)
        t = _ns(polls)
        series.append(Series(channel, t, mj, np.zeros_like(t)))
    if sensor.ring_s is not None:
        series.append(_ring(sensor, total_s, grid, seen, rng))
    channels = tuple(s.channel for s in series)
    meter = Meter(GPU, channels, "measured", "device", sensor.model, vendor="nvidia", accuracy_rel=(0.0, 0.0))
    return Recording((meter,), tuple(series)), at


def _activity(plan, start, end, owner, stream, marks):
    works = [*plan.works, Work("side", "forward", "side", 0, 0)]
    slots = tuple(dict.fromkeys(Slot(w.fqn, w.phase) for w in works))
    signatures = tuple(dict.fromkeys(w.signature for w in works))
    slot_of = np.array([slots.index(Slot(w.fqn, w.phase)) for w in works])
    signature_of = np.array([signatures.index(w.signature) for w in works])
    edges = np.append(marks, end.max())
    return Activity(
        str(GPU),
        slots,
        slot_of[owner],
        _ns(start),
        _ns(end),
        stream,
        np.zeros(len(start), dtype=np.bool_),
        signatures,
        signature_of[owner],
        steps=tuple((int(a), int(b)) for a, b in zip(_ns(edges[:-1]), _ns(edges[1:]), strict=True)),
    )
