"""Repair faulty counters: excursions, frozen intervals, jumps, and unrecoverable intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.power import GAP_NS, BoolArray, Integral
from torchwatt.core.instants import interpolate
from torchwatt.core.meter import Channel, Event, FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# No card, package or memory of one socket draws more: a larger difference is not energy. The largest on the market in
# 2026: a GPU board 1.4 kW, a package 0.5 kW; about three times that leaves room for later ones.
PLAUSIBLE_W = {"gpu": 4000.0, "cpu": 1500.0, "dram": 500.0}
PLAUSIBLE_ELSE_W = 20_000.0
# A counter may publish the joules of that long at once.
PUBLICATION_S = 0.25
# A counter that is constant this long while the power sensor shows work is frozen, not slow.
FROZEN_NS = NS_PER_S
# A read that took longer than this, and than several usual ones, hung: the time of its value is unknown.
HUNG_NS = NS_PER_S // 4
HUNG_READS = 4.0
Spans = tuple[tuple[int, int], ...]


def plausible_j(channel: Channel, for_ns: IntArray) -> FloatArray:
    """Return the maximum plausible energy of the domain in each duration, in J."""
    most_w = PLAUSIBLE_W.get(channel.domain.kind, PLAUSIBLE_ELSE_W)
    return np.asarray(most_w * (for_ns / NS_PER_S + PUBLICATION_S), dtype=np.float64)


def hung(late_ns: IntArray) -> BoolArray:
    """Return whether each read hung; no joules are lost, since the next reading includes them."""
    usual_ns = float(np.median(late_ns)) if len(late_ns) else 0.0
    return np.asarray(late_ns > max(HUNG_NS, HUNG_READS * usual_ns), dtype=np.bool_)


def late_events(series: Series) -> list[Event]:
    """Return an event on hung reads of a counter."""
    out = np.flatnonzero(hung(series.late_ns))
    if not len(out):
        return []
    longest_s = float(series.late_ns.max()) / NS_PER_S
    message = f"{len(out)} reads took up to {longest_s:.3g} s: their instants are unknown, and later readings are used"
    return [event(series.channel, int(series.t_ns[out[0]]), "COUNTER_LATE", message)]


def steps(
    channel: Channel, t_ns: IntArray, raw: FloatArray, *, catching_up: bool = False
) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Return the raw steps, whether each wrapped, and whether each is implausible: negative, or more than can be used.

    With `catching_up`, a step may include energy used since the counter last changed.
    """
    step, begun = np.diff(raw), np.arange(len(raw) - 1)
    if catching_up:
        begun = np.maximum.accumulate(np.where(np.concatenate(([True], step != 0))[:-1], begun, 0))
    most_j = plausible_j(channel, t_ns[1:] - t_ns[begun])
    wrapped = np.zeros(len(step), dtype=np.bool_)
    if channel.modulus is not None:
        lifted = step + channel.modulus
        wrapped = (step < 0) & (lifted >= 0) & (lifted * channel.scale <= most_j)
        step = np.where(wrapped, lifted, step)
    return step, wrapped, np.asarray((step < 0) | (step * channel.scale > most_j), dtype=np.bool_)


def meant(channel: Channel, t_ns: IntArray, raw: FloatArray) -> BoolArray:
    """Return which readings to keep: an excursion from which the counter returns is dropped.

    An excursion lasts from an implausible step to the next one, of opposite sign, that returns to a plausible value.
    """
    keep = np.ones(len(raw), dtype=np.bool_)
    step, _, no_energy = steps(channel, t_ns, raw)
    bad = np.flatnonzero(no_energy)
    i = 0
    while i + 1 < len(bad):
        before, after = bad[i], bad[i + 1] + 1  # readings on both sides of the excursion
        back = steps(channel, t_ns[[before, after]], raw[[before, after]])[2]
        if not back[0] and (step[bad[i]] < 0) != (step[bad[i + 1]] < 0):
            keep[before + 1 : after] = False
            i += 2
        else:
            i += 1
    return keep


def left_out(channel: Channel, t_ns: IntArray, raw: FloatArray, keep: BoolArray) -> list[Event]:
    """Return an event on the readings that were left out."""
    out = np.flatnonzero(~keep)
    if not len(out):
        return []
    first_j = float(raw[out[0]] * channel.scale)
    message = f"{len(out)} of {len(raw)} readings are excursions, the first to {first_j:.4g} J: discarded"
    return [event(channel, int(t_ns[out[0]]), "COUNTER_JUMP", message)]


def bridge(
    t_ns: IntArray, step_j: FloatArray, bad: BoolArray, power: Integral | None, by_power: BoolArray
) -> FloatArray:
    """Estimate the joules of implausible intervals: integrated power, else the mean power of plausible ones.

    An interval of more than two seconds without power readings is not estimated: it gets 0 J, see `lost`.
    """
    dt_s = np.diff(t_ns) / NS_PER_S
    good_s = dt_s[~bad].sum()
    held_j = (step_j[~bad].sum() / good_s if good_s > 0 else 0.0) * dt_s
    found_j = held_j if power is None else np.where(by_power, np.diff(interpolate(t_ns, *power[:2])), held_j)
    return np.asarray(np.where(lost(t_ns, bad, by_power), 0.0, found_j), dtype=np.float64)


def lost(t_ns: IntArray, bad: BoolArray, by_power: BoolArray) -> BoolArray:
    """Return which implausible intervals are too long to be bridged without power readings."""
    return np.asarray(bad & ~by_power & (np.diff(t_ns) > GAP_NS), dtype=np.bool_)


def lost_events(channel: Channel, spans: Spans) -> list[Event]:
    """Return events on intervals of unknown joules."""
    return [
        event(
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
    return event(channel, t_ns, code, f"the counter {fault}; {bridge_j:.3g} J of that interval are taken from {source}")


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """Intervals in which a counter was constant: joules to add, intervals of unknown joules, readings to drop."""

    add_j: FloatArray
    silent: Spans
    bridged: Spans
    keep: BoolArray  # of the readings: one that repeats a stuck value does not date it
    events: tuple[Event, ...]


def still(
    channel: Channel, t_ns: IntArray, step_j: FloatArray, moved: BoolArray, power: Integral | None, by_power: BoolArray
) -> Still:
    """Find intervals in which the counter is constant although the power sensor shows work, or no power was read."""
    add_j, keep = np.zeros_like(step_j), np.ones(len(t_ns), dtype=np.bool_)
    silent: list[tuple[int, int]] = []
    bridged: list[tuple[int, int]] = []
    events: list[Event] = []
    integral = interpolate(t_ns, *power[:2]) if power is not None else np.zeros(len(t_ns))
    changes = np.flatnonzero(moved)
    moving_s = np.diff(t_ns)[step_j > 0].sum() / NS_PER_S
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
        events.append(event(channel, int(t_ns[start]), "COUNTER_FROZEN", message))
    return Still(add_j, tuple(silent), tuple(bridged), keep, tuple(events))


def event(channel: Channel, t_ns: int, code: str, message: str) -> Event:
    """Return a warning about the counter's domain."""
    return Event(t_ns, "warning", code, str(channel.domain), message)
