"""Build one energy curve per domain from a recording, and compare the counter with the integrated power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchwatt.attribution import counter_repair
from torchwatt.attribution.counter_repair import unwrap_counter
from torchwatt.attribution.observed_windows import subtract_gaps
from torchwatt.attribution.power_integral import (
    GAP_NS,
    PowerIntegral,
    TimeSpans,
    add_window_ends,
    covers_windows,
    cut_at_holes,
    drop_unusable,
    find_implausible,
    find_increasing,
    find_power_holes,
    integrate_power,
    reading_uncertainty_j,
)
from torchwatt.core.energy_curve import EnergyCurve, interpolate
from torchwatt.core.meter import Event, FloatArray, IntArray, Meter, Recording, Series, Unavailable
from torchwatt.core.terms import Method
from torchwatt.core.units import NS_PER_S

# Counter against integrated power, over at least five seconds: a guard of docs/attribution.md.
CROSS_CHECK_REL = 0.05
CROSS_CHECK_NS = 5 * NS_PER_S
# A counter that publishes less often than that, and fewer times in a run, is replaced by the power sensor beside it.
SLOW_COUNTER_NS, MIN_UPDATES = NS_PER_S // 2, 10
SLOW_COUNTER_PREFIX = "the energy counter"  # in the note, and so in the domain's sentence
MAX_GAP_EVENTS = 5  # reported one by one
FROZEN_POWER_NS = 3 * NS_PER_S
# Of a sensor that changed so many times, and never repeated a value for a tenth of that time.
FROZEN_LIVELY_NS, CHANGES = 2 * NS_PER_S // 5, 10


@dataclass(frozen=True, slots=True, eq=False)
class MeteredCurve:
    """A domain's curve over the whole recording, with events on its readings."""

    meter: Meter
    curve: EnergyCurve
    events: tuple[Event, ...]
    polls: tuple[IntArray, FloatArray] | None = None  # a counter's readings at the polls, in joules
    wrap_ns: tuple[int, ...] = ()
    silent: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns) without any reading: energy unknown
    leaning: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns) of counter faults filled by integrated power

    def wraps_between(self, start_ns: int, end_ns: int) -> int:
        """Return how often the counter wrapped in a window."""
        return sum(start_ns < t <= end_ns for t in self.wrap_ns)

    def unknown_between(self, start_ns: int, end_ns: int) -> int:
        """Return the nanoseconds of a window for which the energy is unknown."""
        return sum(max(min(hi, end_ns) - max(lo, start_ns), 0) for lo, hi in self.silent)


def build_metered_curve(
    meter: Meter, recording: Recording, window: tuple[int, int] | None = None
) -> MeteredCurve | Unavailable:
    """Build the curve of one meter: its counter where it has one, else its integrated power.

    Args:
        meter: One of the recording's.
        recording: Its readings, those before and after the run included.
        window: Start and end of the run in ns: power is interpolated at both, and gaps outside give no
            events. Default: the whole recording.
    """
    power = select_series(recording, meter, "power")
    counter = select_series(recording, meter, "counter")
    if window is None and power is not None:
        window = int(power.t_ns[0]), int(power.t_ns[-1])
    gone, bridged = _missing_power(recording, power, window)
    integral = (
        integrate_power(cut_at_holes(add_window_ends(power, *window), gone), gone)
        if power is not None and window is not None
        else None
    )
    slow_s = 0.0
    if counter is not None and window is not None and integral is not None and covers_windows(integral, *window):
        slow_s = slow_update_interval_s(counter, *window)
    if counter is not None and not slow_s:
        from_readings = build_counter_curve(meter, counter, power, integral)
        read = recording.get(counter.channel.key) or counter
        return replace(
            from_readings,
            events=(
                *from_readings.events,
                *counter_repair.hung_read_events(read),
                *_implausible_power_events(meter, recording),
            ),
        )
    if integral is None or power is None or window is None:
        return Unavailable(str(meter.domain), "the meter was found, and returned fewer than two readings")
    t_ns, energy_j, silent = integral
    events = [*_gap_events(meter, silent, *window), *_implausible_power_events(meter, recording)]
    events += _frozen_power_events(meter, power.between(*window))
    method: Method = "load_model" if meter.provenance == "modelled" else "power_integral"
    # Bridged energy may have been anything from 0 to twice the estimate: a uniform distribution.
    bridged_j = sum(integrate_window(integral, lo, hi) or 0.0 for lo, hi in bridged)
    u_j = float(np.hypot(reading_uncertainty_j(power, integral, *window), bridged_j / np.sqrt(3.0)))
    curve = EnergyCurve(meter.domain, t_ns, energy_j, method, meter.provenance, u_j, silent=silent)
    if slow_s:
        note = f"{SLOW_COUNTER_PREFIX} publishes every {slow_s:.2g} s, too slow for this run: integrated power is used"
        meter = replace(meter, notes=(*meter.notes, note))
    return MeteredCurve(meter, curve, tuple(events), silent=silent)


def _missing_power(
    recording: Recording, power: Series | None, window: tuple[int, int] | None
) -> tuple[TimeSpans, TimeSpans]:
    """Return the intervals of a window without usable power readings: unknown ones, and bridged ones."""
    read = recording.get(power.channel.key) if power is not None else None
    return find_power_holes(read, *window) if read is not None and window is not None else ((), ())


def select_series(recording: Recording, meter: Meter, quantity: str) -> Series | None:
    """Return the usable readings of a meter's counter or power, in time order; None where there are fewer than two."""
    for channel in meter.channels:
        series = recording.get(channel.key) if channel.quantity == quantity else None
        if series is None:
            continue
        series = drop_unusable(series) if quantity == "power" else drop_hung_reads(series)
        keep = find_increasing(series.t_ns)
        series = Series(series.channel, series.t_ns[keep], series.raw[keep], series.late_ns[keep])
        if len(series) >= 2:
            return series
    return None


def drop_hung_reads(series: Series) -> Series:
    """Drop readings of a counter that are not finite, and those that hung."""
    keep = np.isfinite(series.raw) & ~counter_repair.find_hung_reads(series.late_ns)
    return Series(series.channel, series.t_ns[keep], series.raw[keep], series.late_ns[keep])


def slow_update_interval_s(counter: Series, start_ns: int, end_ns: int) -> float:
    """Return the publication interval of a counter that is too slow for a window, in seconds; 0 if it is not too slow.

    For a counter that changed once or twice, the longest time without a change.
    """
    changed_ns = counter.t_ns[1:][np.diff(counter.raw) != 0]
    if not len(changed_ns):
        return 0.0  # it is constant: a different fault
    ends_ns = np.concatenate((counter.t_ns[:1], changed_ns, counter.t_ns[-1:]))
    every_ns = float(np.median(np.diff(changed_ns)) if len(changed_ns) > 2 else np.diff(ends_ns).max())
    slow = every_ns >= SLOW_COUNTER_NS and end_ns - start_ns < MIN_UPDATES * every_ns
    return every_ns / NS_PER_S if slow else 0.0


def build_counter_curve(
    meter: Meter, counter: Series, power: Series | None, integral: PowerIntegral | None
) -> MeteredCurve:
    """Build a meter's curve from its counter, with power readings to bridge its faults."""
    unwrapped = unwrap_counter(counter, integral)
    # With more than half of its joules from integrated power, the method is power_integral.
    leaning = unwrapped.bridged_j > 0.5 * max(float(unwrapped.energy_j[-1]), 1e-12)
    cross_j = (
        integrate_window(integral, int(unwrapped.t_ns[0]), int(unwrapped.t_ns[-1])) if integral is not None else None
    )
    method: Method = "power_integral" if leaning and integral is not None else "counter"
    curve = EnergyCurve(
        meter.domain,
        unwrapped.t_ns,
        unwrapped.energy_j,
        method,
        meter.provenance,
        unwrapped.u_j,
        cross_j,
        unwrapped.silent,
    )
    events = [*unwrapped.events, *_compare_methods(meter, curve, integral)]
    # A slow counter's last reading is old; cutting a run there would lose up to one publication.
    polls = None if unwrapped.coarse else (unwrapped.poll_ns, unwrapped.poll_j)
    if power is not None:
        bridged = (
            [(a, b) for a, b in unwrapped.bridged if covers_windows(integral, a, b)] if integral is not None else []
        )
        events += _frozen_power_events(meter, power, curve, bridged)
    return MeteredCurve(
        meter,
        curve,
        tuple(events),
        polls=polls,
        wrap_ns=unwrapped.wrap_ns,
        silent=unwrapped.silent,
        leaning=unwrapped.bridged,
    )


def integrate_window(integral: PowerIntegral, start_ns: int, end_ns: int) -> float | None:
    """Return the integrated joules of a window; None unless power was read throughout."""
    if not covers_windows(integral, start_ns, end_ns):
        return None
    return float(np.diff(interpolate([start_ns, end_ns], *integral[:2]))[0])


def _compare_methods(meter: Meter, curve: EnergyCurve, integral: PowerIntegral | None) -> list[Event]:
    """Compare both methods over the time for which both are known, if that is long enough."""
    if integral is None:
        return []
    t_ns, energy_j, silent = integral
    common = np.array([[max(curve.start_ns, int(t_ns[0])), min(curve.end_ns, int(t_ns[-1]))]])
    common = subtract_gaps(common, (*silent, *curve.silent))
    if np.diff(common, axis=1).sum() < CROSS_CHECK_NS:
        return []
    counted_j = float(np.diff(curve.at(common), axis=1).sum())
    other_j = float(np.diff(interpolate(common, t_ns, energy_j), axis=1).sum())
    off = abs(counted_j - other_j) / max(other_j, counted_j, 1e-12)
    if off <= CROSS_CHECK_REL:
        return []
    message = (
        f"the counter gives {counted_j:.4g} J, integrated power {other_j:.4g} J ({off:.0%} apart); "
        "the counter is used, and one of the two is wrong"
    )
    return [Event(curve.end_ns, "warning", "CROSS_CHECK", str(meter.domain), message)]


def _gap_events(meter: Meter, silent: tuple[tuple[int, int], ...], start_ns: int, end_ns: int) -> list[Event]:
    """Return events on intervals of the run without a power reading; one for all if there are many."""
    parts = [(max(lo, start_ns), min(hi, end_ns)) for lo, hi in silent if min(hi, end_ns) > max(lo, start_ns)]
    if len(parts) > MAX_GAP_EVENTS:
        all_s = sum(hi - lo for lo, hi in parts) / NS_PER_S
        message = f"no power reading in {len(parts)} intervals, {all_s:.2f} s together: their energy is not counted"
        return [Event(parts[0][0], "warning", "SAMPLE_GAP", str(meter.domain), message)]
    return [
        Event(
            lo,
            "warning",
            "SAMPLE_GAP",
            str(meter.domain),
            f"no power reading for {(hi - lo) / NS_PER_S:.2f} s: the energy of that time is unknown, and not counted",
        )
        for lo, hi in parts
    ]


def _implausible_power_events(meter: Meter, recording: Recording) -> list[Event]:
    """Return events on power readings outside the physical range, which were discarded."""
    events = []
    for series in (recording.get(c.key) for c in meter.channels if c.quantity == "power"):
        bad = np.flatnonzero(find_implausible(series)) if series is not None else np.zeros(0, dtype=np.int64)
        if series is not None and len(bad):
            worst_w = float(series.raw[bad[0]] * series.channel.scale)
            summary = f"{len(bad)} of {len(series)} power readings out of range, the first {worst_w:.6g} W"
            message = f"{series.channel.key}: {summary}: discarded"
            events.append(Event(int(series.t_ns[bad[0]]), "warning", "POWER_ABSURD", str(meter.domain), message))
    return events


def _frozen_power_events(
    meter: Meter, power: Series, curve: EnergyCurve | None = None, bridged: Sequence[tuple[int, int]] = ()
) -> list[Event]:
    """Return an event if a power sensor repeats one value for seconds, unless the counter agrees with it.

    A counter that was bridged by that power over half of the time does not count as agreement.
    """
    if power.channel.sensor in {"tdp_model", "ram_model"} or len(power) < 2:
        return []
    change = np.flatnonzero((np.diff(power.raw) != 0) | (np.diff(power.t_ns) > GAP_NS))  # none across a gap
    starts, stops = np.concatenate(([0], change + 1)), np.concatenate((change, [len(power) - 1]))
    lengths_ns = power.t_ns[stops] - power.t_ns[starts]
    longest = int(np.argmax(lengths_ns))
    start, stop = int(starts[longest]), int(stops[longest])
    start_ns, end_ns = int(power.t_ns[start]), int(power.t_ns[stop])
    shorter_ns = np.delete(lengths_ns, longest)
    lively = len(shorter_ns) >= CHANGES and end_ns - start_ns >= CHANGES * int(shorter_ns.max())
    if end_ns - start_ns < (FROZEN_LIVELY_NS if lively else FROZEN_POWER_NS):
        return []
    stuck_w = float(power.raw[start] * power.channel.scale)
    seconds = (end_ns - start_ns) / NS_PER_S
    leaning_ns = sum(max(min(b, end_ns) - max(a, start_ns), 0) for a, b in bridged)
    alone = curve is None or 2 * leaning_ns > end_ns - start_ns
    if curve is not None and not alone:
        seen_w = curve.between(start_ns, end_ns) / seconds
        if abs(seen_w - stuck_w) <= CROSS_CHECK_REL * max(seen_w, stuck_w):
            return []
    message = f"the power sensor repeated {stuck_w:.6g} W for {seconds:.1f} s"
    tail = "; it may be stuck" if alone else "; the counter disagrees and is booked"
    if alone and curve is not None:
        tail += ", and the counter did not change either: the joules of that time are based on this value"
    return [Event(start_ns, "warning", "POWER_FROZEN", str(meter.domain), message + tail)]
