"""Compute energy from a cumulative counter: unwrapped, with resets and frozen intervals bridged and reported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.power_integral import (
    GAP_NS,
    BoolArray,
    PowerIntegral,
    TimeSpans,
    covers_windows,
    find_increasing,
)
from torchwatt.core.energy_curve import interpolate
from torchwatt.core.meter import Channel, Event, FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# Upper bounds of the power of a board, CPU package or memory of one socket; a larger difference is a fault. About three
# times the largest on the market in 2026 (a GPU board 1.4 kW, a package 0.5 kW).
PLAUSIBLE_W = {"gpu": 4000.0, "cpu": 1500.0, "dram": 500.0}
PLAUSIBLE_DEFAULT_W = 20_000.0
# A counter may publish the joules of this many seconds at once.
PUBLICATION_S = 0.25
# A counter that is constant this long while the power sensor shows work is frozen, not slow.
FROZEN_NS = NS_PER_S
# A read that took longer than this, and than several usual ones, hung: the time of its value is unknown.
HUNG_NS = NS_PER_S // 4
HUNG_READS = 4.0


def max_plausible_j(channel: Channel, for_ns: IntArray) -> FloatArray:
    """Return the maximum plausible energy of the domain in each duration, in J."""
    most_w = PLAUSIBLE_W.get(channel.domain.kind, PLAUSIBLE_DEFAULT_W)
    return np.asarray(most_w * (for_ns / NS_PER_S + PUBLICATION_S), dtype=np.float64)


def find_hung_reads(late_ns: IntArray) -> BoolArray:
    """Return whether each read hung; no joules are lost, since the next reading includes them."""
    usual_ns = float(np.median(late_ns)) if len(late_ns) else 0.0
    return np.asarray(late_ns > max(HUNG_NS, HUNG_READS * usual_ns), dtype=np.bool_)


def hung_read_events(series: Series) -> list[Event]:
    """Return an event on hung reads of a counter."""
    out = np.flatnonzero(find_hung_reads(series.late_ns))
    if not len(out):
        return []
    longest_s = float(series.late_ns.max()) / NS_PER_S
    message = f"{len(out)} reads took up to {longest_s:.3g} s: their instants are unknown, and later readings are used"
    return [counter_event(series.channel, int(series.t_ns[out[0]]), "COUNTER_LATE", message)]


def compute_increments(
    channel: Channel, t_ns: IntArray, raw: FloatArray, *, catching_up: bool = False
) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Return the raw steps, whether each wrapped, and whether each is implausible: negative, or more than can be used.

    With `catching_up`, a step may include energy used since the counter last changed.
    """
    step = np.diff(raw)
    most_j = max_plausible_j(channel, _since_change_ns(t_ns, step) if catching_up else np.diff(t_ns))
    wrapped = np.zeros(len(step), dtype=np.bool_)
    if channel.modulus is not None:
        lifted = step + channel.modulus
        wrapped = (step < 0) & (lifted >= 0) & (lifted * channel.scale <= most_j)
        step = np.where(wrapped, lifted, step)
    return step, wrapped, np.asarray((step < 0) | (step * channel.scale > most_j), dtype=np.bool_)


def _since_change_ns(t_ns: IntArray, step: FloatArray) -> IntArray:
    """Return for each step the time since the reading before it changed last."""
    begun = np.where(np.concatenate(([True], step != 0))[:-1], np.arange(len(step)), 0)
    return np.asarray(t_ns[1:] - t_ns[np.maximum.accumulate(begun)], dtype=np.int64)


def _counted_ns(channel: Channel, t_ns: IntArray, step_j: FloatArray) -> IntArray:
    """Return the time that each step counts: since the last change where it is too large for the time of one poll."""
    dt_ns = np.diff(t_ns)
    most_w = PLAUSIBLE_W.get(channel.domain.kind, PLAUSIBLE_DEFAULT_W)
    large = step_j > most_w * dt_ns / NS_PER_S
    return np.asarray(np.where(large, _since_change_ns(t_ns, step_j), dt_ns), dtype=np.int64)


def find_valid_readings(channel: Channel, t_ns: IntArray, raw: FloatArray) -> BoolArray:
    """Return which readings to keep: an excursion from which the counter returns is dropped.

    An excursion lasts from an implausible step to the next one, of opposite sign, that returns to a plausible value.
    """
    keep = np.ones(len(raw), dtype=np.bool_)
    step, _, no_energy = compute_increments(channel, t_ns, raw)
    bad = np.flatnonzero(no_energy)
    i = 0
    while i + 1 < len(bad):
        before, after = bad[i], bad[i + 1] + 1  # readings on both sides of the excursion
        back = compute_increments(channel, t_ns[[before, after]], raw[[before, after]])[2]
        if not back[0] and (step[bad[i]] < 0) != (step[bad[i + 1]] < 0):
            keep[before + 1 : after] = False
            i += 2
        else:
            i += 1
    return keep


def excursion_events(channel: Channel, t_ns: IntArray, raw: FloatArray, keep: BoolArray) -> list[Event]:
    """Return an event on the readings that were left out."""
    out = np.flatnonzero(~keep)
    if not len(out):
        return []
    first_j = float(raw[out[0]] * channel.scale)
    message = f"{len(out)} of {len(raw)} readings are excursions, the first to {first_j:.4g} J: discarded"
    return [counter_event(channel, int(t_ns[out[0]]), "COUNTER_JUMP", message)]


def bridge_increments(
    t_ns: IntArray, step_j: FloatArray, bad: BoolArray, power: PowerIntegral | None, by_power: BoolArray
) -> FloatArray:
    """Estimate the joules of implausible intervals: integrated power, else the mean power of plausible ones.

    An interval of more than two seconds without power readings is not estimated: it gets 0 J, see `lost`.
    """
    dt_s = np.diff(t_ns) / NS_PER_S
    good_s = dt_s[~bad].sum()
    held_j = (step_j[~bad].sum() / good_s if good_s > 0 else 0.0) * dt_s
    found_j = held_j if power is None else np.where(by_power, np.diff(interpolate(t_ns, *power[:2])), held_j)
    return np.asarray(np.where(find_unrecoverable(t_ns, bad, by_power), 0.0, found_j), dtype=np.float64)


def find_unrecoverable(t_ns: IntArray, bad: BoolArray, by_power: BoolArray) -> BoolArray:
    """Return which implausible intervals are too long to be bridged without power readings."""
    return np.asarray(bad & ~by_power & (np.diff(t_ns) > GAP_NS), dtype=np.bool_)


def unrecoverable_events(channel: Channel, spans: TimeSpans) -> list[Event]:
    """Return events on intervals of unknown joules."""
    return [
        counter_event(
            channel,
            hi,
            "COUNTER_LOST",
            f"no reading for {(hi - lo) / NS_PER_S:.3g} s, after which the counter had restarted: the joules of "
            "that time are unknown, and not counted",
        )
        for lo, hi in spans
    ]


def bridge_event(channel: Channel, t_ns: int, bridge_j: float, step_j: float, *, by_power: bool) -> Event:
    """Return an event on a counter that went backwards or jumped, with the source of that interval's joules."""
    source = "the integrated power" if by_power else "the mean power around it"
    code, fault = ("COUNTER_RESET", "went backwards") if step_j < 0 else ("COUNTER_JUMP", f"jumped by {step_j:.3g} J")
    return counter_event(
        channel, t_ns, code, f"the counter {fault}; {bridge_j:.3g} J of that interval are taken from {source}"
    )


@dataclass(frozen=True, slots=True, eq=False)
class FrozenIntervals:
    """Intervals in which a counter was constant: joules to add, intervals of unknown joules, readings to drop."""

    add_j: FloatArray
    silent: TimeSpans
    bridged: TimeSpans
    keep: BoolArray  # readings to keep: repeats of a stuck value have no known instant
    events: tuple[Event, ...]


def find_frozen_intervals(
    channel: Channel,
    t_ns: IntArray,
    step_j: FloatArray,
    moved: BoolArray,
    power: PowerIntegral | None,
    by_power: BoolArray,
) -> FrozenIntervals:
    """Find intervals in which the counter is constant although the power sensor shows work, or no power was read."""
    add_j, keep = np.zeros_like(step_j), np.ones(len(t_ns), dtype=np.bool_)
    silent: list[tuple[int, int]] = []
    bridged: list[tuple[int, int]] = []
    events: list[Event] = []
    integral = interpolate(t_ns, *power[:2]) if power is not None else np.zeros(len(t_ns))
    changes = np.flatnonzero(moved)
    moving_s = _counted_ns(channel, t_ns, step_j)[step_j > 0].sum() / NS_PER_S
    moving_w = step_j.sum() / moving_s if moving_s > 0 else 0.0
    # Interval i lies between two changes; the first and the last extend to the ends of the readings.
    starts, ends = np.concatenate(([0], changes + 1)), np.concatenate((changes, [len(step_j)]))
    typical_ns = np.median(np.diff(t_ns[changes + 1])) if len(changes) > 2 else 0.0
    long = t_ns[ends] - t_ns[starts] >= max(FROZEN_NS, 10 * typical_ns)
    for start, stop in zip(starts[long].tolist(), ends[long].tolist(), strict=True):
        length_ns = int(t_ns[stop] - t_ns[start])
        power_known = bool(by_power[start:stop].all())
        if not power_known and length_ns < GAP_NS:
            continue
        missed_j = integral[stop] - integral[start] if power_known else moving_w * length_ns / NS_PER_S
        caught_up_j = step_j[stop] if stop < len(step_j) else 0.0
        if missed_j - caught_up_j < 0.5 * missed_j:
            keep[start + 1 : stop + 1] = False
            consequence = "and then caught up: the distribution of its joules within that time is unknown"
        elif power_known:
            bridged.append((int(t_ns[start]), int(t_ns[stop])))
            add_j[start:stop] = np.diff(integral[start : stop + 1])
            consequence = (
                f"while the power sensor showed {missed_j:.1f} J; that interval is taken from the integrated power"
            )
        else:
            silent.append((int(t_ns[start]), int(t_ns[stop])))
            consequence = "and no power was read: the joules of that time are unknown, and not counted"
        message = f"the counter did not change for {length_ns / NS_PER_S:.2f} s {consequence}"
        events.append(counter_event(channel, int(t_ns[start]), "COUNTER_FROZEN", message))
    return FrozenIntervals(add_j, tuple(silent), tuple(bridged), keep, tuple(events))


def counter_event(channel: Channel, t_ns: int, code: str, message: str) -> Event:
    """Return a warning about the counter's domain."""
    return Event(t_ns, "warning", code, str(channel.domain), message)


# An interval without readings in which the counter may wrap, at this multiple of the mean power, has unknown joules.
WRAP_POWER_REL = 2.0
# A counter that repeats itself this often is dated by its publications, not by the polls.
REPEAT_SHARE = 0.15
# A counter that publishes less often than this (NVML: 20-100 ms; RAPL: 1 ms) is interpolated between publications,
SLOW_UPDATE_NS = 18_000_000
MIN_REPEATED_SHARE = 0.3  # if this part of the readings repeats the one before


@dataclass(frozen=True, slots=True, eq=False)
class UnwrappedCounter:
    """Cumulative joules at the counter's publications, and at the polls.

    `bridged_j` is the part taken from integrated power or from the mean power around.
    """

    t_ns: IntArray
    energy_j: FloatArray
    poll_ns: IntArray
    poll_j: FloatArray
    wrap_ns: tuple[int, ...]
    coarse: bool
    bridged_j: float
    u_j: float
    events: tuple[Event, ...]
    silent: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns) with unknown joules
    bridged: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns) filled by integrated power


def unwrap_counter(series: Series, power: PowerIntegral | None) -> UnwrappedCounter:
    """Convert counter readings to cumulative joules.

    A decrease is a wrap if the counter has a modulus and the difference is physically possible; otherwise it is a reset
    (driver reload, suspend). A rise that is not physically possible is a jump; readings from which the counter returns
    are left out. The joules of a reset or a jump are taken from the integrated power, or from the mean power where
    power was not read. An interval too long for that is silent, and so is one in which the counter may have wrapped
    more than once: its joules are unknown. A counter that is constant for a second while the power sensor shows work is
    frozen and bridged the same way; if it is constant for two seconds without power readings, that interval is silent.

    Args:
        series: At least two readings in time order, polled often enough to wrap at most once in between.
        power: The integral of the same domain's power sensor, if it has one.
    """
    channel = series.channel
    t_ns, raw, events = _drop_faulty_readings(series)
    step, wrapped, bad = compute_increments(channel, t_ns, raw, catching_up=True)
    step_j = step * channel.scale
    by_power = covers_windows(power, t_ns[:-1], t_ns[1:]) if power is not None else np.zeros(len(step), dtype=np.bool_)
    lost = find_unrecoverable(t_ns, bad, by_power)
    bridge_j = bridge_increments(t_ns, step_j, bad, power, by_power)
    wrap_ns = tuple(int(t) for t in t_ns[1:][wrapped])
    events += _wrap_events(series, wrap_ns)
    events += [
        bridge_event(channel, int(t_ns[i + 1]), float(bridge_j[i]), float(step_j[i]), by_power=bool(by_power[i]))
        for i in np.flatnonzero(bad & ~lost)
    ]
    step_j = np.where(bad, bridge_j, step_j)
    still = find_frozen_intervals(channel, t_ns, step_j, (step_j > 0) | lost, power, by_power)
    step_j = step_j + still.add_j
    unsure, unsure_events = _ambiguous_wraps(series, t_ns, step_j)
    gone = tuple((int(t_ns[i]), int(t_ns[i + 1])) for i in np.flatnonzero(lost))
    events += [*still.events, *unsure_events, *unrecoverable_events(channel, gone)]
    silent = tuple(sorted((*unsure, *gone, *still.silent)))
    poll_ns = np.diff(t_ns)[still.keep[1:]]  # to the poll before, also where that repeated a stuck value
    energy_j, t_ns = np.concatenate(([0.0], np.cumsum(step_j)))[still.keep], t_ns[still.keep]
    t_out, e_out, u_j, coarse = _date_updates(t_ns, energy_j, poll_ns, silent)
    bridged_j = float(bridge_j[bad].sum() + still.add_j.sum())
    return UnwrappedCounter(
        t_out, e_out, t_ns, energy_j, wrap_ns, coarse, bridged_j, u_j, tuple(events), silent, still.bridged
    )


def _drop_faulty_readings(series: Series) -> tuple[IntArray, FloatArray, list[Event]]:
    """Drop readings that are not later than the one before, and excursions."""
    forward = find_increasing(series.t_ns)
    t_ns, raw = series.t_ns[forward], series.raw[forward]
    keep = find_valid_readings(series.channel, t_ns, raw)
    return t_ns[keep], raw[keep], excursion_events(series.channel, t_ns, raw, keep)


def _wrap_events(series: Series, t_ns: tuple[int, ...]) -> list[Event]:
    message = "the counter wrapped and was unwrapped"
    return [Event(t, "info", "COUNTER_WRAP", str(series.channel.domain), message) for t in t_ns]


def _ambiguous_wraps(
    series: Series, t_ns: IntArray, step_j: FloatArray
) -> tuple[tuple[tuple[int, int], ...], list[Event]]:
    """Find intervals without a reading in which the counter may have wrapped more than once."""
    if series.channel.modulus is None:
        return (), []
    dt_s = np.diff(t_ns) / NS_PER_S
    short = dt_s <= 10 * np.median(dt_s)
    mean_w = float(step_j[short].sum() / dt_s[short].sum())
    long = ~short & (WRAP_POWER_REL * mean_w * dt_s > series.channel.modulus * series.channel.scale)
    spans = tuple((int(t_ns[i]), int(t_ns[i + 1])) for i in np.flatnonzero(long))
    events = [
        counter_event(
            series.channel,
            hi,
            "COUNTER_UNSURE",
            f"no reading for {(hi - lo) / NS_PER_S:.3g} s, in which the counter may have wrapped more than once: "
            "the energy of that time is unknown, and too low if it did",
        )
        for lo, hi in spans
    ]
    return spans, events


def _date_updates(
    t_ns: IntArray, energy_j: FloatArray, poll_ns: IntArray, silent: tuple[tuple[int, int], ...]
) -> tuple[IntArray, FloatArray, float, bool]:
    """Keep the publications of a counter that is polled faster than it publishes.

    A changed value was published between the poll before, or one publication interval ago if that is later, and this
    poll: the middle is taken. Between publications the curve is a straight line; before the first and after the last it
    is extended at the mean power of the neighbouring publication interval, but not into a silent interval. The standard
    uncertainty is that of two ends, each uniform within a publication: E_pub / sqrt(12) * sqrt(2).
    """
    step_j = np.diff(energy_j)
    changed = step_j > 0
    # A run's edge is read microseconds after a poll: a few repeated readings alone do not make a counter coarse.
    apart_ns = float(np.median(np.diff(t_ns[1:][changed]))) if changed.sum() >= 3 else 0.0
    coarse = (
        apart_ns > SLOW_UPDATE_NS and float((~changed[_find_known_intervals(t_ns, silent)]).mean()) > MIN_REPEATED_SHARE
    )
    typical_j = float(np.median(step_j[changed])) if changed.any() else 0.0
    u_j = typical_j / np.sqrt(6.0)
    if not coarse:
        return *_date_readings(t_ns, energy_j, poll_ns, changed, apart_ns), u_j, False
    at = np.flatnonzero(changed)
    t_pub = _update_times_ns(t_ns, poll_ns, at, apart_ns)
    e_pub = energy_j[at + 1]
    head_w = (e_pub[1] - e_pub[0]) / (t_pub[1] - t_pub[0])
    tail_w = (e_pub[-1] - e_pub[-2]) / (t_pub[-1] - t_pub[-2])
    first_ns = max((hi for lo, hi in silent if lo <= t_ns[0]), default=int(t_ns[0]))
    last_ns = min((lo for lo, hi in silent if hi >= t_ns[-1]), default=int(t_ns[-1]))
    head_j = e_pub[0] - head_w * max(t_pub[0] - first_ns, 0)
    tail_j = e_pub[-1] + tail_w * max(last_ns - t_pub[-1], 0)
    t_all = np.concatenate(([t_ns[0]], t_pub, [t_ns[-1]]))
    e_all = np.concatenate(([head_j], e_pub, [tail_j]))
    keep = np.concatenate(([True], np.diff(t_all) > 0))
    return t_all[keep], e_all[keep] - e_all[0], u_j, True


def _find_known_intervals(t_ns: IntArray, silent: tuple[tuple[int, int], ...]) -> BoolArray:
    """Return which intervals lie outside all silent ones."""
    heard = np.ones(len(t_ns) - 1, dtype=np.bool_)
    for lo, hi in silent:
        heard &= (t_ns[1:] <= lo) | (t_ns[:-1] >= hi)
    return heard


def _update_times_ns(t_ns: IntArray, poll_ns: IntArray, at: IntArray, apart_ns: float) -> IntArray:
    """Date the values after the polls `at`: midway since that poll, or since one publication interval ago if later."""
    since_ns = poll_ns[at]
    if apart_ns > 0:
        since_ns = np.minimum(since_ns, int(apart_ns))
    return np.asarray(t_ns[at + 1] - since_ns // 2, dtype=np.int64)


def _date_readings(
    t_ns: IntArray, energy_j: FloatArray, poll_ns: IntArray, changed: np.ndarray, apart_ns: float
) -> tuple[IntArray, FloatArray]:
    """Date the readings of a counter that often repeats itself: midway to the poll before.

    The first and the last reading keep their times, so that the joules between them are exact.
    """
    if len(changed) < 3 or float((~changed).mean()) <= REPEAT_SHARE:
        return t_ns, energy_j
    at = np.flatnonzero(changed[:-1])
    t_out = np.concatenate(([t_ns[0]], _update_times_ns(t_ns, poll_ns, at, apart_ns), [t_ns[-1]]))
    e_out = np.concatenate(([energy_j[0]], energy_j[at + 1], [energy_j[-1]]))
    keep = np.concatenate(([True], np.diff(t_out) > 0))
    return t_out[keep], e_out[keep]
