"""Join a recording and a trace into one ledger per domain."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from torchwatt.attribution.accuracy_bands import add_bands
from torchwatt.attribution.counted_domains import (
    classify_device_use,
    exclude_foreign_device,
    map_gpus_to_modules,
    nest_module_ledgers,
)
from torchwatt.attribution.counter_scope import assign_counter_scopes
from torchwatt.attribution.cross_check import UNCHECKED_PREFIX
from torchwatt.attribution.device_fit import NO_PRIORS, DevicePriors
from torchwatt.attribution.device_ledger import build_device_ledger
from torchwatt.attribution.estimator import LOCKED_GAP
from torchwatt.attribution.host_attribution import HostAttribution, attribute_host
from torchwatt.attribution.metered_curve import (
    MeteredCurve,
    build_metered_curve,
    drop_hung_reads,
    integrate_window,
    select_series,
)
from torchwatt.attribution.method_note import SPARSE_READINGS_PREFIX, UNSAMPLED_PREFIX, describe_method
from torchwatt.attribution.observed_windows import subtract_gaps
from torchwatt.attribution.power_integral import INTERVAL_MEAN, drop_unusable, integrate_power
from torchwatt.attribution.unsampled_phases import UnsampledPhases, estimate_unsampled, find_sparse_intervals
from torchwatt.core.energy_curve import EnergyCurve, interpolate
from torchwatt.core.errors import SensorError
from torchwatt.core.ledger import MIN_COVERAGE, Ledger
from torchwatt.core.meter import Event, Meter, Recording, Series, Unavailable
from torchwatt.core.terms import Domain
from torchwatt.core.trace import Trace
from torchwatt.core.units import NS_PER_S, Z90

SPARSE_READINGS_REL = 0.1  # readings that leave so much of the joules open are a warning
PHASES_UNSEEN_CODE = "PHASES_UNSEEN"  # an event: the run is partial, for most of a step was never sampled
PART_TIME_POWER_CODE = "PART_TIME_POWER"  # an event: without steps, what the sensor never sampled is not known
MAX_LIMIT_RATIO = 1.25  # boards exceed their limit for moments, and meters by some per cent
PROCESS_CPU, CHILDREN_CPU = "process/process_cpu", "process/children_cpu"
# Below this part of one CPU, or of the CPU time of the process and its children, child processes are not reported.
MIN_CHILDREN_SHARE = 0.05
# Host spans show when the CPU worked. A GPU runs its kernels later: without a device timeline its joules have no layer.
HOST_KINDS = frozenset({"cpu", "dram", "ram"})


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Ledgers and curves of the metered domains, domains without a meter, and events."""

    ledgers: tuple[Ledger, ...]
    curves: tuple[EnergyCurve, ...]
    unavailable: tuple[Unavailable, ...]
    events: tuple[Event, ...]
    meters: tuple[Meter, ...] = ()  # as identified: a counter may turn out to cover a module


def attribute_recording(
    recording: Recording, trace: Trace, start_ns: int, end_ns: int, priors: DevicePriors = NO_PRIORS
) -> Attribution:
    """Book the window's joules of every meter to the slots of the trace.

    Readings before `start_ns` are the idle baseline and those after `end_ns` let slow counters publish; neither is
    booked. A device is split by its activity in the trace, the host by the trace's spans.
    """
    scoped = assign_counter_scopes(recording, (start_ns, end_ns))
    recording = scoped.recording
    used = classify_device_use(recording, trace, priors.cuda, start_ns, end_ns, priors.named)
    home = map_gpus_to_modules(recording.meters)
    ledgers: list[Ledger] = []
    curves: list[EnergyCurve] = []
    unavailable: list[Unavailable] = []
    known_as: dict[Domain, Meter] = {}
    told_of = {(event.code, event.subject) for event in scoped.events}
    events: list[Event] = [*scoped.events, *_child_process_events(recording, start_ns, end_ns)]
    for meter in recording.meters:
        if all(channel.quantity == "gauge" for channel in meter.channels):
            continue  # gauges only: no energy
        metered = _build_curve(meter, recording, (start_ns, end_ns))
        if isinstance(metered, Unavailable):
            unavailable.append(metered)
            continue
        events += [event for event in metered.events if (event.code, event.subject) not in told_of]
        curve = _clip_to_run(metered, start_ns, end_ns)
        if curve is None or _has_no_energy(metered, curve):
            unavailable.append(Unavailable(str(meter.domain), _no_energy_reason(curve)))
            continue
        metered, curve, meter_events = add_sampling_uncertainty(metered, curve, recording, trace)
        events += meter_events
        metered, over = check_power_limit(metered, curve)
        events += over
        known_as[meter.domain] = metered.meter
        curves.append(curve)
        blank = _ledger_head(metered, curve, recording, start_ns, end_ns)
        if priors.baseline and blank.known_s > 0:
            blank = replace(blank, static_w=_baseline_power_w(metered, start_ns, curve.total_j / blank.known_s))
        if meter.domain.kind in HOST_KINDS:
            ledgers.append(_build_host_ledger(metered, blank, attribute_host(curve, trace, recording.get(PROCESS_CPU))))
        else:
            ledger, meter_events = build_device_ledger(metered, blank, curve, recording, trace, priors)
            ledger, use_events = exclude_foreign_device(
                ledger, used.get(str(meter.domain)), home.get(str(meter.domain), "")
            )
            ledgers.append(ledger)
            events += (*meter_events, *(replace(event, t_ns=end_ns) for event in use_events))
    meters = tuple(known_as.get(meter.domain, meter) for meter in recording.meters)
    nested = nest_module_ledgers(ledgers, curves, meters, trace, recording.get(PROCESS_CPU))
    return Attribution(add_bands(nested, meters), tuple(curves), tuple(unavailable), tuple(events), meters)


def check_power_limit(metered: MeteredCurve, curve: EnergyCurve) -> tuple[MeteredCurve, list[Event]]:
    """Mark a meter as unchecked whose mean power exceeds the device's own power limit; either may be wrong."""
    declared_limit = metered.meter.fact("power_limit_w") or ""
    limit_w = float(declared_limit) if re.fullmatch(r"\d+(\.\d*)?", declared_limit) else 0.0
    mean_w = curve.mean_w(curve.start_ns, curve.end_ns)
    if not 0 < MAX_LIMIT_RATIO * limit_w < (mean_w or 0.0):
        return metered, []
    text = f"the mean power is {mean_w:.4g} W, above the device's limit of {limit_w:.4g} W"
    meter = replace(metered.meter, notes=(*metered.meter.notes, f"{UNCHECKED_PREFIX}: {text}"))
    message = f"{text}: the meter or the limit is wrong"
    event = Event(curve.end_ns, "warning", "OVER_LIMIT", str(metered.meter.domain), message)
    return replace(metered, meter=meter), [event]


def add_sampling_uncertainty(
    metered: MeteredCurve, curve: EnergyCurve, recording: Recording, trace: Trace
) -> tuple[MeteredCurve, EnergyCurve, list[Event]]:
    """Widen the interval of integrated power by the parts of the run that the sensor did not sample."""
    power = select_series(recording, metered.meter, "power")
    if power is None or curve.method != "power_integral" or metered.meter.provenance != "measured":
        return metered, curve, []
    if power.channel.sensor in INTERVAL_MEAN:
        return metered, curve, []
    domain = str(metered.meter.domain)
    work = next((activity for activity in trace.activities if activity.device == domain), None)
    counts = trace.step_counts or (1,) * len(trace.steps)
    steps = [(start, end, count) for (start, end), count in zip(trace.steps, counts, strict=True)]
    if work is not None and work.steps:
        steps = [(start, end, 1) for start, end in work.steps]
    missed = estimate_unsampled(power, metered.meter, curve.start_ns, curve.end_ns, steps)
    curve = replace(curve, u_j=float(np.hypot(curve.u_j, missed.u_j)))
    metered, sparse_events = _note_sparse_readings(metered, curve, power)
    lower_rel, upper_rel = missed.band(curve.total_j, (curve.end_ns - curve.start_ns) / NS_PER_S)
    meter = metered.meter
    if missed.share > 0:
        lo, hi = meter.accuracy_rel or (0.0, 0.0)
        band = ((1 + lo) * (1 + lower_rel) - 1, (1 + hi) * (1 + upper_rel) - 1)
        source = "; ".join(filter(None, (meter.accuracy_source, "widened by the phases that were never sampled")))
        meter = replace(meter, accuracy_rel=band, accuracy_source=source)
    if missed.period_s > 0:
        meter, event = _part_time_sensor(meter, missed, upper_rel, curve.end_ns)
        return replace(metered, meter=meter), curve, [*sparse_events, event]
    if missed.share <= 0:
        return metered, curve, sparse_events
    note = f"{UNSAMPLED_PREFIX}: {missed.share:.0%} of the run's phases met no update of the power sensor"
    meter = replace(meter, notes=(*meter.notes, note))
    if missed.share <= LOCKED_GAP:
        return replace(metered, meter=meter), curve, sparse_events
    message = (
        f"steps run in sync with the power sensor: {missed.share:.0%} of a step was never sampled, and there is no "
        "counter. The joules are those of the sampled part, and their interval assumes anything from zero "
        "to the device's limit for the remainder; vary the length of the steps, or meter a longer run"
    )
    event = Event(curve.end_ns, "warning", PHASES_UNSEEN_CODE, domain, message)
    return replace(metered, meter=meter), curve, [*sparse_events, event]


def _part_time_sensor(meter: Meter, missed: UnsampledPhases, upper_rel: float, end_ns: int) -> tuple[Meter, Event]:
    """Mark a meter as unchecked whose sensor may look at a part of the time, in a run without steps."""
    window = f"{missed.window_s * 1e3:.3g} ms" if missed.window_s > 0 else "an unknown part"
    note = (
        f"{UNCHECKED_PREFIX}: the power sensor looks at {window} of every {missed.period_s * 1e3:.4g} ms, "
        "without a counter, and work that repeats in sync with it is partly unseen"
    )
    unseen = (
        f" In one of ten such runs no update sees the work of {missed.share:.0%} of the time: the interval assumes "
        "anything from zero to the device's limit for it."
    )
    message = f"{note}.{unseen if missed.share > 0 else ''} Mark the steps (`run.step()`), or meter a longer run"
    severity: Literal["info", "warning"] = "warning" if upper_rel > SPARSE_READINGS_REL else "info"
    event = Event(end_ns, severity, PART_TIME_POWER_CODE, str(meter.domain), message)
    return replace(meter, notes=(*meter.notes, note)), event


def _note_sparse_readings(metered: MeteredCurve, curve: EnergyCurve, power: Series) -> tuple[MeteredCurve, list[Event]]:
    """Say how seldom power was read, where seconds lie between two readings, and what that means for the joules."""
    edges, watts = find_sparse_intervals(power, curve.start_ns, curve.end_ns)
    if not len(edges):
        return metered, []
    every_s = float(np.median(np.diff(power.t_ns))) / NS_PER_S
    meter = replace(metered.meter, notes=(*metered.meter.notes, f"{SPARSE_READINGS_PREFIX} every {every_s:.3g} s"))
    half_j = Z90 * curve.u_j
    if half_j <= SPARSE_READINGS_REL * curve.total_j:
        return replace(metered, meter=meter), []
    change_w = float(np.ptp(watts, axis=1).max())
    message = (
        f"power was read every {every_s:.3g} s and changed by up to {change_w:.3g} W from one reading to the next: "
        f"power in between is unknown, so the {curve.total_j:.4g} J have an uncertainty of "
        f"+-{half_j:.3g} J (90 %); log at least once a second"
    )
    return replace(metered, meter=meter), [
        Event(curve.end_ns, "warning", "READ_SELDOM", str(metered.meter.domain), message)
    ]


def _child_process_events(recording: Recording, start_ns: int, end_ns: int) -> list[Event]:
    """Return an event with the CPU time of child processes, which is neither traced nor idle."""
    cpu_times = [recording.get(key) for key in (CHILDREN_CPU, PROCESS_CPU)]
    if any(series is None or len(series) < 2 for series in cpu_times):
        return []
    children_s, all_s = (
        float(np.diff(interpolate([start_ns, end_ns], s.t_ns, np.maximum.accumulate(s.raw) * s.channel.scale))[0])
        for s in cpu_times
        if s is not None
    )
    if children_s <= MIN_CHILDREN_SHARE * max((end_ns - start_ns) / NS_PER_S, all_s):
        return []
    message = (
        f"child processes used {children_s:.3g} of the {all_s:.3g} CPU seconds: their work is not traced, and is in "
        "(unattributed) where this process waited for it"
    )
    return [Event(end_ns, "info", "CHILD_PROCESSES", "run", message)]


def _build_curve(meter: Meter, recording: Recording, window: tuple[int, int]) -> MeteredCurve | Unavailable:
    """Build a meter's curve; unusable readings make this meter unavailable, and no other."""
    try:
        return build_metered_curve(meter, recording, window)
    except SensorError as error:
        return Unavailable(str(meter.domain), f"its readings are unusable: {error}")


def _has_no_energy(metered: MeteredCurve, curve: EnergyCurve) -> bool:
    """Return whether a measured curve has no joules: a device always draws power, so the meter is faulty."""
    return curve.total_j <= 0 and metered.meter.provenance == "measured"


def _no_energy_reason(curve: EnergyCurve | None) -> str:
    if curve is None or curve.silent:
        return "no reading during the run"
    seconds = (curve.end_ns - curve.start_ns) / NS_PER_S
    return f"the meter's value did not change in {seconds:.3g} s: it is frozen, or too slow for a run of this length"


def _clip_to_run(metered: MeteredCurve, start_ns: int, end_ns: int) -> EnergyCurve | None:
    """Cut the curve to the run.

    A counter that keeps up with its polls is cut at its first and last reading inside the run, so that its joules are
    the difference of two readings that an auditor can look up. Other curves are cut at the run's own ends, and so is a
    counter with readings on both sides whose readings inside cover too little of the run, such as those of a slow log.
    """
    curve = metered.curve
    if metered.polls is None or curve.method != "counter":
        return curve.clip(start_ns, end_ns)
    poll_ns, poll_j = metered.polls
    polls_in_run = np.flatnonzero((poll_ns >= start_ns) & (poll_ns <= end_ns))
    if len(polls_in_run) < 2:
        return curve.clip(start_ns, end_ns)
    ends = polls_in_run[[0, -1]]
    on_both_sides = poll_ns[0] <= start_ns and end_ns <= poll_ns[-1]
    if on_both_sides and int(np.diff(poll_ns[ends])[0]) < MIN_COVERAGE * (end_ns - start_ns):
        return curve.clip(start_ns, end_ns)
    between = (curve.t_ns > poll_ns[ends[0]]) & (curve.t_ns < poll_ns[ends[1]])
    energy_j = np.concatenate((poll_j[ends[:1]], curve.energy_j[between], poll_j[ends[1:]]))
    t_ns = np.concatenate((poll_ns[ends[:1]], curve.t_ns[between], poll_ns[ends[1:]]))
    return replace(curve, t_ns=t_ns, energy_j=np.clip(energy_j, *poll_j[ends]) - poll_j[ends[0]])


def _ledger_head(metered: MeteredCurve, curve: EnergyCurve, recording: Recording, start_ns: int, end_ns: int) -> Ledger:
    """Return the ledger without its entries."""
    known_ns = curve.end_ns - curve.start_ns - metered.unknown_between(curve.start_ns, curve.end_ns)
    head = Ledger(
        domain=metered.meter.domain,
        energy_j=0.0,
        entries=(),
        method=curve.method,
        provenance=curve.provenance,
        known_s=known_ns / NS_PER_S,
        window_s=(end_ns - start_ns) / NS_PER_S,
        energy_u_j=curve.u_j,
        cross_check_j=_integrated_power_j(curve, recording, metered),
    )
    return _add_counter_readings(head, recording, metered, curve)


def _build_host_ledger(metered: MeteredCurve, blank: Ledger, host: HostAttribution) -> Ledger:
    entries = host.entries(blank.static_w, metered.meter.accuracy_rel)
    lo_j, hi_j = host.interval_j
    ledger = replace(blank, energy_j=host.curve.total_j, energy_lo_j=lo_j, energy_hi_j=hi_j, entries=entries)
    return replace(ledger, sentence=describe_method(metered, ledger, host.fit))


def _baseline_power_w(metered: MeteredCurve, start_ns: int, mean_w: float) -> float | None:
    """Return the mean power of the idle baseline before the run, if at least 0.1 s of it are known.

    A device that was busy then draws less at rest: `mean_w`, the mean power of the run, is the most.
    """
    curve = metered.curve
    if curve.start_ns >= start_ns or metered.meter.provenance != "measured":
        return None
    # A silent interval has unknown joules, and no reliable mean power.
    known_parts = subtract_gaps(np.array([[curve.start_ns, min(start_ns, curve.end_ns)]]), metered.silent)
    known_ns = int(np.diff(known_parts, axis=1).sum())
    if known_ns < NS_PER_S // 10:
        return None
    return min(float(np.diff(curve.at(known_parts), axis=1).sum()) / (known_ns / NS_PER_S), mean_w)


def _add_counter_readings(head: Ledger, recording: Recording, metered: MeteredCurve, curve: EnergyCurve) -> Ledger:
    """Add the counter's own readings at both ends, so that its joules can be recomputed by hand."""
    if curve.method != "counter":
        return head
    channel = metered.meter.channel("counter")
    series = recording.get(channel.key) if channel is not None else None
    if channel is None or series is None:
        return head
    raw = drop_hung_reads(series).between(curve.start_ns, curve.end_ns).raw
    if len(raw) < 2:
        return head
    return replace(
        head,
        counter_start_raw=int(raw[0]),
        counter_end_raw=int(raw[-1]),
        counter_unit_j=channel.scale,
        counter_wraps=metered.wraps_between(curve.start_ns, curve.end_ns),
    )


def _integrated_power_j(curve: EnergyCurve, recording: Recording, metered: MeteredCurve) -> float | None:
    """Integrate the power sensor over the same window as the counter; None without both."""
    channel = metered.meter.channel("power")
    series = recording.get(channel.key) if channel is not None else None
    if metered.meter.channel("counter") is None or series is None:
        return None
    readings = drop_unusable(series)
    return integrate_window(integrate_power(readings), curve.start_ns, curve.end_ns) if len(readings) > 1 else None
