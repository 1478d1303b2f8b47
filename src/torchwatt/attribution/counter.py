"""Compute energy from a cumulative counter: unwrapped, with resets and frozen intervals bridged and reported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution import broken
from torchwatt.attribution.power import BoolArray, Integral, knows, later
from torchwatt.core.meter import Event, FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# An interval without readings in which the counter may wrap, at this multiple of the mean power, has unknown joules.
WRAP_POWER_REL = 2.0
# A counter that repeats itself this often is dated by its publications, not by the polls.
REPEAT_SHARE = 0.15
# A counter that publishes less often than this (NVML: 20-100 ms; RAPL: 1 ms) is interpolated between publications,
COARSE_NS = 18_000_000
COARSE_SHARE = 0.3  # if this part of the readings repeats the one before


@dataclass(frozen=True, slots=True, eq=False)
class Unwrapped:
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


def unwrap(series: Series, power: Integral | None) -> Unwrapped:
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
    t_ns, raw, events = _meant(series)
    step, wrapped, bad = broken.steps(channel, t_ns, raw, catching_up=True)
    step_j = step * channel.scale
    by_power = knows(power, t_ns[:-1], t_ns[1:]) if power is not None else np.zeros(len(step), dtype=np.bool_)
    lost = broken.lost(t_ns, bad, by_power)
    bridge_j = broken.bridge(t_ns, step_j, bad, power, by_power)
    wrap_ns = tuple(int(t) for t in t_ns[1:][wrapped])
    events += _wrap_events(series, wrap_ns)
    events += [
        broken.bridge_event(channel, int(t_ns[i + 1]), float(bridge_j[i]), float(step_j[i]), by_power=bool(by_power[i]))
        for i in np.flatnonzero(bad & ~lost)
    ]
    step_j = np.where(bad, bridge_j, step_j)
    still = broken.still(channel, t_ns, step_j, (step_j > 0) | lost, power, by_power)
    step_j = step_j + still.add_j
    unsure, unsure_events = _unsure(series, t_ns, step_j)
    gone = tuple((int(t_ns[i]), int(t_ns[i + 1])) for i in np.flatnonzero(lost))
    events += [*still.events, *unsure_events, *broken.lost_events(channel, gone)]
    silent = tuple(sorted((*unsure, *gone, *still.silent)))
    energy_j, t_ns = np.concatenate(([0.0], np.cumsum(step_j)))[still.keep], t_ns[still.keep]
    t_out, e_out, u_j, coarse = _publications(t_ns, energy_j, np.diff(energy_j), silent)
    bridged_j = float(bridge_j[bad].sum() + still.add_j.sum())
    return Unwrapped(
        t_out, e_out, t_ns, energy_j, wrap_ns, coarse, bridged_j, u_j, tuple(events), silent, still.bridged
    )


def _meant(series: Series) -> tuple[IntArray, FloatArray, list[Event]]:
    """Drop readings that are not later than the one before, and excursions."""
    forward = later(series.t_ns)
    t_ns, raw = series.t_ns[forward], series.raw[forward]
    keep = broken.meant(series.channel, t_ns, raw)
    return t_ns[keep], raw[keep], broken.left_out(series.channel, t_ns, raw, keep)


def _wrap_events(series: Series, t_ns: tuple[int, ...]) -> list[Event]:
    message = "the counter wrapped and was unwrapped"
    return [Event(t, "info", "COUNTER_WRAP", str(series.channel.domain), message) for t in t_ns]


def _unsure(series: Series, t_ns: IntArray, step_j: FloatArray) -> tuple[tuple[tuple[int, int], ...], list[Event]]:
    """Find intervals without a reading in which the counter may have wrapped more than once."""
    if series.channel.modulus is None:
        return (), []
    dt_s = np.diff(t_ns) / NS_PER_S
    short = dt_s <= 10 * np.median(dt_s)
    mean_w = float(step_j[short].sum() / dt_s[short].sum())
    long = ~short & (WRAP_POWER_REL * mean_w * dt_s > series.channel.modulus * series.channel.scale)
    spans = tuple((int(t_ns[i]), int(t_ns[i + 1])) for i in np.flatnonzero(long))
    events = [
        broken.event(
            series.channel,
            hi,
            "COUNTER_UNSURE",
            f"no reading for {(hi - lo) / NS_PER_S:.3g} s, in which the counter may have wrapped more than once: "
            "the energy of that time is unknown, and too low if it did",
        )
        for lo, hi in spans
    ]
    return spans, events


def _publications(
    t_ns: IntArray, energy_j: FloatArray, step_j: FloatArray, silent: tuple[tuple[int, int], ...]
) -> tuple[IntArray, FloatArray, float, bool]:
    """Keep the publications of a counter that is polled faster than it publishes.

    A changed value was published between the poll before, or one publication interval ago if that is later, and this
    poll: the middle is taken. Between publications the curve is a straight line; before the first and after the last it
    is extended at the mean power of the neighbouring publication interval, but not into a silent interval. The standard
    uncertainty is that of two ends, each uniform within a publication: E_pub / sqrt(12) * sqrt(2).
    """
    changed = step_j > 0
    # A run's edge is read microseconds after a poll: a few repeated readings alone do not make a counter coarse.
    apart_ns = float(np.median(np.diff(t_ns[1:][changed]))) if changed.sum() >= 3 else 0.0
    coarse = apart_ns > COARSE_NS and float((~changed[_heard(t_ns, silent)]).mean()) > COARSE_SHARE
    typical_j = float(np.median(step_j[changed])) if changed.any() else 0.0
    u_j = typical_j / np.sqrt(6.0)
    if not coarse:
        return *_at_publication(t_ns, energy_j, changed, apart_ns), u_j, False
    at = np.flatnonzero(changed)
    t_pub = _published(t_ns, at, apart_ns)
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
    """Return which intervals lie outside all silent ones."""
    heard = np.ones(len(t_ns) - 1, dtype=np.bool_)
    for lo, hi in silent:
        heard &= (t_ns[1:] <= lo) | (t_ns[:-1] >= hi)
    return heard


def _published(t_ns: IntArray, at: IntArray, apart_ns: float) -> IntArray:
    """Date the values after the polls `at`: midway since that poll, or since one publication interval ago if later."""
    since_ns = np.diff(t_ns)[at]
    if apart_ns > 0:
        since_ns = np.minimum(since_ns, int(apart_ns))
    return np.asarray(t_ns[at + 1] - since_ns // 2, dtype=np.int64)


def _at_publication(
    t_ns: IntArray, energy_j: FloatArray, changed: np.ndarray, apart_ns: float
) -> tuple[IntArray, FloatArray]:
    """Date the readings of a counter that often repeats itself: midway to the poll before.

    The first and the last reading keep their times, so that the joules between them are exact.
    """
    if len(changed) < 3 or float((~changed).mean()) <= REPEAT_SHARE:
        return t_ns, energy_j
    at = np.flatnonzero(changed[:-1])
    t_out = np.concatenate(([t_ns[0]], _published(t_ns, at, apart_ns), [t_ns[-1]]))
    e_out = np.concatenate(([energy_j[0]], energy_j[at + 1], [energy_j[-1]]))
    keep = np.concatenate(([True], np.diff(t_out) > 0))
    return t_out[keep], e_out[keep]
