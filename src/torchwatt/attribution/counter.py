"""Energy from a cumulative counter: unwrapped, with resets and frozen stretches bridged and said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.power import GAP_NS, BoolArray, Integral, knows
from torchwatt.core.meter import Event, FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# No card, package or memory of one socket draws more: a difference that would need it is no energy. The largest on
# the market in 2026: a GPU board 1.4 kW, a package 0.5 kW; three times that leaves room for what comes.
PLAUSIBLE_W = {"gpu": 4000.0, "cpu": 1500.0, "dram": 500.0}
PLAUSIBLE_ELSE_W = 20_000.0
# A counter may publish the joules of so long a time at once.
PUBLICATION_S = 0.25
# A counter that nobody read while it might have gone round, at this multiple of the mean power, tells no joules.
WRAP_POWER_REL = 2.0
# A counter that stands still this long while the power sensor shows work is frozen, not slow.
FROZEN_NS = NS_PER_S
# A counter that repeats itself this often is dated by its publications, not by the polls that saw them.
REPEAT_SHARE = 0.15
# A counter that publishes less often than this (NVML: 20-100 ms; RAPL: 1 ms) is read between its publications.
COARSE_NS = 18_000_000
COARSE_SHARE = 0.3  # and this part of the readings repeats the one before


@dataclass(frozen=True, slots=True, eq=False)
class Unwrapped:
    """Cumulative joules when the counter published them, and as the polls read them.

    `bridged_j` is the part that came from integrated power instead.
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
    silent: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns) whose joules are not known


def unwrap(series: Series, power: Integral | None) -> Unwrapped:
    """Turn counter readings into cumulative joules.

    A decrease is a wrap if the counter has a modulus and the difference is physically possible; otherwise it
    is a reset (driver reload, suspend). A rise that is not physically possible is a jump. The joules of such an
    interval are taken from the integrated power, or held at the neighbouring power where power was not read; longer
    than two seconds nobody holds a power, and the interval is silent. An interval so long that the counter may have gone round more than once is silent: its joules are not known. A
    counter that stands still for a second while the power sensor shows work is frozen and bridged the same way;
    where no power is known and it stands still for two, that stretch is silent.

    Args:
        series: At least two readings in time order, polled often enough to wrap at most once in between.
        power: The integral of the same domain's power sensor, if it has one.
    """
    t_ns, raw = _strictly_later(series)
    step = np.diff(raw)
    most_j = _plausible_j(series, t_ns)
    wrapped = np.zeros(len(step), dtype=np.bool_)
    if series.channel.modulus is not None:
        lifted = step + series.channel.modulus
        wrapped = (step < 0) & (lifted * series.channel.scale <= most_j)
        step = np.where(wrapped, lifted, step)
    step_j = step * series.channel.scale
    reset = (step < 0) | (step_j > most_j)
    events = [
        _event(series, int(t), "COUNTER_WRAP", "info", "the counter wrapped and was unwrapped")
        for t in t_ns[1:][wrapped]
    ]
    by_power = knows(power, t_ns[:-1], t_ns[1:]) if power is not None else np.zeros(len(step), dtype=np.bool_)
    bridge_j = _bridge(t_ns, step_j, reset, power, by_power)
    lost = reset & ~by_power & (np.diff(t_ns) > GAP_NS)
    bridge_j[lost] = 0.0
    events += [
        _reset_event(series, int(t_ns[i + 1]), float(bridge_j[i]), float(step_j[i]), has_power=bool(by_power[i]))
        for i in np.flatnonzero(reset & ~lost)
    ]
    step_j = np.where(reset, bridge_j, step_j)
    frozen, still, frozen_events = _frozen(series, t_ns, step_j, (step_j > 0) | lost, power, by_power)
    step_j = np.where(frozen > 0, step_j + frozen, step_j)
    energy_j = np.concatenate(([0.0], np.cumsum(step_j)))
    bridged_j = float(bridge_j[reset].sum() + frozen.sum())
    wrap_ns = tuple(int(t) for t in t_ns[1:][wrapped])
    unsure, unsure_events = _unsure(series, t_ns, step_j)
    gone = tuple((int(t_ns[i]), int(t_ns[i + 1])) for i in np.flatnonzero(lost))
    events += [*frozen_events, *unsure_events, *(_lost_event(series, lo, hi) for lo, hi in gone)]
    silent = tuple(sorted((*unsure, *gone, *still)))
    t_out, e_out, u_j, coarse = _publications(t_ns, energy_j, step_j, silent)
    return Unwrapped(t_out, e_out, t_ns, energy_j, wrap_ns, coarse, bridged_j, u_j, tuple(events), silent)


def _plausible_j(series: Series, t_ns: IntArray) -> FloatArray:
    """Return what the domain can have used at most in each interval."""
    most_w = PLAUSIBLE_W.get(series.channel.domain.kind, PLAUSIBLE_ELSE_W)
    return np.asarray(most_w * (np.diff(t_ns) / NS_PER_S + PUBLICATION_S), dtype=np.float64)


def _unsure(series: Series, t_ns: IntArray, step_j: FloatArray) -> tuple[tuple[tuple[int, int], ...], list[Event]]:
    """Find intervals without a reading in which the counter may have gone round more than once."""
    if series.channel.modulus is None:
        return (), []
    dt_s = np.diff(t_ns) / NS_PER_S
    short = dt_s <= 10 * np.median(dt_s)
    mean_w = float(step_j[short].sum() / dt_s[short].sum())
    long = ~short & (WRAP_POWER_REL * mean_w * dt_s > series.channel.modulus * series.channel.scale)
    spans = tuple((int(t_ns[i]), int(t_ns[i + 1])) for i in np.flatnonzero(long))
    events = [
        _event(
            series,
            hi,
            "COUNTER_UNSURE",
            "warning",
            f"no reading for {(hi - lo) / NS_PER_S:.3g} s, in which the counter may have gone round more than once: "
            "the energy of that time is not known, and counted too low if it did",
        )
        for lo, hi in spans
    ]
    return spans, events


def _strictly_later(series: Series) -> tuple[IntArray, FloatArray]:
    keep = np.concatenate(([True], np.diff(series.t_ns) > 0))
    return series.t_ns[keep], series.raw[keep]


def _bridge(
    t_ns: IntArray, step_j: FloatArray, bad: BoolArray, power: Integral | None, by_power: BoolArray
) -> FloatArray:
    """Estimate the joules of bad intervals: integrated power, else the mean power of the good ones."""
    dt_s = np.diff(t_ns) / NS_PER_S
    good_s = dt_s[~bad].sum()
    held_j = (step_j[~bad].sum() / good_s if good_s > 0 else 0.0) * dt_s
    if power is None:
        return np.asarray(held_j, dtype=np.float64)
    return np.asarray(np.where(by_power, np.diff(np.interp(t_ns, *power[:2])), held_j), dtype=np.float64)


def _frozen(
    series: Series, t_ns: IntArray, step_j: FloatArray, moved: BoolArray, power: Integral | None, by_power: BoolArray
) -> tuple[FloatArray, tuple[tuple[int, int], ...], list[Event]]:
    """Find stretches without a step but with work on the power sensor, or with nothing to say what was used.

    Returns joules to add to each interval, the stretches whose joules are not known, and what to say.
    """
    add_j = np.zeros_like(step_j)
    silent: list[tuple[int, int]] = []
    events: list[Event] = []
    integral = np.interp(t_ns, *power[:2]) if power is not None else np.zeros(len(t_ns))
    changes = np.flatnonzero(moved)
    moving_s = np.diff(t_ns)[step_j > 0].sum() / NS_PER_S
    moving_w = step_j.sum() / moving_s if moving_s > 0 else 0.0
    # Stretch i lies between two changes; the first and the last reach to the ends of the readings.
    starts = np.concatenate(([0], changes + 1))
    ends = np.concatenate((changes, [len(step_j)]))
    typical_ns = np.median(np.diff(t_ns[changes + 1])) if len(changes) > 2 else 0.0
    for first, last in zip(starts, ends, strict=True):
        length_ns = t_ns[last] - t_ns[first]
        known = bool(by_power[first:last].all())
        missed_j = integral[last] - integral[first] if known else moving_w * length_ns / NS_PER_S
        caught_up_j = step_j[last] if last < len(step_j) else 0.0
        shortest_ns = max(FROZEN_NS if known else GAP_NS, 10 * typical_ns)
        if length_ns < shortest_ns or missed_j - caught_up_j < 0.5 * missed_j:
            continue
        if known:
            add_j[first:last] = np.diff(integral[first : last + 1])
            told = f"while the power sensor showed {missed_j:.1f} J; that stretch is taken from the integrated power"
        else:
            silent.append((int(t_ns[first]), int(t_ns[last])))
            told = "and no power was read: the joules of that time are unknown, and not counted"
        message = f"the counter stood still for {length_ns / NS_PER_S:.2f} s {told}"
        events.append(_event(series, int(t_ns[first]), "COUNTER_FROZEN", "warning", message))
    return add_j, tuple(silent), events


def _publications(
    t_ns: IntArray, energy_j: FloatArray, step_j: FloatArray, silent: tuple[tuple[int, int], ...]
) -> tuple[IntArray, FloatArray, float, bool]:
    """Keep the publications of a counter that is polled faster than it publishes.

    A changed value was published somewhere between the poll before and this one: half-way is taken. Between
    publications the curve is a straight line; before the first and after the last it goes on at the mean
    power of the neighbouring publication interval, but not into a silence. The standard uncertainty is that of two ends, each uniform
    within a publication: E_pub / sqrt(12) * sqrt(2).
    """
    changed = step_j > 0
    # A run's edge is read microseconds after a poll: a few repeated readings alone do not make a counter coarse.
    apart_ns = float(np.median(np.diff(t_ns[1:][changed]))) if changed.sum() >= 3 else 0.0
    coarse = apart_ns > COARSE_NS and float((~changed[_heard(t_ns, silent)]).mean()) > COARSE_SHARE
    typical_j = float(np.median(step_j[changed])) if changed.any() else 0.0
    u_j = typical_j / np.sqrt(6.0)
    if not coarse:
        return *_at_publication(t_ns, energy_j, changed), u_j, False
    at = np.flatnonzero(changed)
    t_pub = (t_ns[at] + t_ns[at + 1]) // 2
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


def _heard(t_ns: IntArray, silent: tuple[tuple[int, int], ...]) -> BoolArray:
    """Tell which intervals lie in no silence."""
    heard = np.ones(len(t_ns) - 1, dtype=np.bool_)
    for lo, hi in silent:
        heard &= (t_ns[1:] <= lo) | (t_ns[:-1] >= hi)
    return heard


def _at_publication(t_ns: IntArray, energy_j: FloatArray, changed: np.ndarray) -> tuple[IntArray, FloatArray]:
    """Date the readings of a counter that often repeats itself: half-way back to the poll before.

    The first and the last reading stay where they are, so that the joules between them are theirs exactly.
    """
    if len(changed) < 3 or float((~changed).mean()) <= REPEAT_SHARE:
        return t_ns, energy_j
    at = np.flatnonzero(changed[:-1])
    t_out = np.concatenate(([t_ns[0]], (t_ns[at] + t_ns[at + 1]) // 2, [t_ns[-1]]))
    e_out = np.concatenate(([energy_j[0]], energy_j[at + 1], [energy_j[-1]]))
    keep = np.concatenate(([True], np.diff(t_out) > 0))
    return t_out[keep], e_out[keep]


def _event(series: Series, t_ns: int, code: str, severity: str, message: str) -> Event:
    return Event(t_ns, "info" if severity == "info" else "warning", code, str(series.channel.domain), message)


def _lost_event(series: Series, lo_ns: int, hi_ns: int) -> Event:
    message = (
        f"no reading for {(hi_ns - lo_ns) / NS_PER_S:.3g} s, after which the counter had started again: the joules of "
        "that time are unknown, and not counted"
    )
    return _event(series, hi_ns, "COUNTER_LOST", "warning", message)


def _reset_event(series: Series, t_ns: int, bridge_j: float, step_j: float, *, has_power: bool) -> Event:
    how = "the integrated power" if has_power else "the mean power around it"
    code, what = ("COUNTER_RESET", "went backwards") if step_j < 0 else ("COUNTER_JUMP", f"jumped by {step_j:.3g} J")
    message = f"the counter {what}; {bridge_j:.3g} J of that interval are taken from {how}"
    return _event(series, t_ns, code, "warning", message)
