"""One device's ledger: split by its activity where there is one, else one unattributed row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torchwatt.attribution.device_attribution import DeviceAttribution, attribute_device, build_device_entries
from torchwatt.attribution.device_fit import DevicePriors
from torchwatt.attribution.metered_curve import MeteredCurve
from torchwatt.attribution.method_note import describe_method
from torchwatt.attribution.repeat_spread import unsplit_interval_j
from torchwatt.attribution.sensor_response import find_sensor_family
from torchwatt.attribution.sensor_updates import select_power_series
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.ledger import Entry, Ledger, book_entry
from torchwatt.core.meter import Event, Recording
from torchwatt.core.terms import UNATTRIBUTED, Slot
from torchwatt.core.trace import Activity, Trace
from torchwatt.core.units import NS_PER_S


def build_device_ledger(
    metered: MeteredCurve, blank: Ledger, curve: EnergyCurve, recording: Recording, trace: Trace, priors: DevicePriors
) -> tuple[Ledger, list[Event]]:
    """Return a device's ledger and the events of its attribution."""
    books = None
    name = str(metered.meter.domain)
    activity = next((a for a in trace.activities if a.device == name and len(a)), None)
    ring_events: list[Event] = []
    if activity is not None:
        powers = [recording.get(c.key) for c in metered.meter.channels if c.quantity == "power"]
        power, why = select_power_series(
            [series for series in powers if series is not None], curve.start_ns, curve.end_ns
        )
        if why:
            message = f"layers were fitted to polled power, not to the driver's own samples: {why}"
            ring_events = [Event(curve.start_ns, "info", "RING_UNUSED", name, message)]
        books = attribute_device(curve, activity, trace, power, find_sensor_family(metered.meter.model), priors)
    if books is None or activity is None:
        interval_j = unsplit_interval_j(curve, trace)
        lo_j, hi_j = interval_j
        entry = _unsplit_entry(metered, curve, blank.static_w, interval_j)
        ledger = replace(blank, energy_j=curve.total_j, energy_lo_j=lo_j, energy_hi_j=hi_j, entries=(entry,))
        return replace(ledger, sentence=describe_method(metered, ledger, None)), _no_timeline_events(
            metered, curve, trace
        )
    rows = build_device_entries(books, blank.static_w, _count_calls(trace, curve), metered.meter.accuracy_rel)
    lo_j, hi_j = books.interval_j
    ledger = replace(blank, energy_j=curve.total_j, energy_lo_j=lo_j, energy_hi_j=hi_j, entries=rows)
    return replace(ledger, sentence=describe_method(metered, ledger, books)), ring_events + _attribution_events(
        metered, curve, activity, books
    )


def _count_calls(trace: Trace, curve: EnergyCurve) -> dict[Slot, int | None]:
    """Count the host's calls of each slot inside the curve, since kernels are not calls; None: unknown."""
    overlaps = (trace.end_ns > curve.start_ns) & (trace.start_ns < curve.end_ns)
    counts = np.bincount(trace.slot[overlaps], trace.calls[overlaps], len(trace.slots))
    return {
        slot: None if i in trace.untold_calls else int(count)
        for i, (slot, count) in enumerate(zip(trace.slots, counts, strict=True))
    }


def _attribution_events(
    metered: MeteredCurve, curve: EnergyCurve, activity: Activity, books: DeviceAttribution
) -> list[Event]:
    domain = str(metered.meter.domain)
    events = [Event(curve.start_ns, "info", "ACTIVITY", domain, note) for note in activity.notes]
    if not books.fit.fitted:
        fix = ""
        if books.fit.locked:
            fix = "; a random pause of up to 1 ms a step (dither) or a replay of the layers would distinguish them"
        message = f"joules are split by busy time: {books.fit.reason}{fix}"
        events.append(Event(curve.start_ns, "warning", "TIME_SHARE", domain, message))
    if books.fit.columns.pooled:
        message = f"{books.fit.columns.pooled} small kinds of work were pooled by signature before the fit"
        events.append(Event(curve.start_ns, "info", "POOLED", domain, message))
    return events


def _unsplit_entry(
    metered: MeteredCurve,
    curve: EnergyCurve,
    static_w: float | None,
    interval_j: tuple[float, float] | tuple[None, None],
) -> Entry:
    """Book a domain without a device timeline to one row, as measured."""
    known_s = (curve.end_ns - curve.start_ns - sum(hi - lo for lo, hi in curve.unheard_ns())) / NS_PER_S
    return book_entry(
        curve.domain,
        Slot(UNATTRIBUTED, "other"),
        curve.total_j,
        known_s,
        method=curve.method,
        provenance=metered.meter.provenance,
        static_j=None if static_w is None else static_w * known_s,
        interval_j=interval_j,
    )


def _no_timeline_events(metered: MeteredCurve, curve: EnergyCurve, trace: Trace) -> list[Event]:
    if len(trace) == 0:
        return []
    message = (
        "the device's joules are booked to (unattributed): the host's spans alone do not show when each "
        "layer's kernels ran"
    )
    return [Event(curve.start_ns, "info", "NO_DEVICE_TIMELINE", str(metered.meter.domain), message)]
