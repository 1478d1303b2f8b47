"""Determine what a GPU's energy counter covers: the GPU alone, or the superchip (module) with its CPU and memory.

On Grace-Hopper and Grace-Blackwell NVML's total-energy counter is the whole module, while power is read by scope (zeus,
pull request 172). Instead of product names, the counter's joules are compared with integrated power at scope GPU and at
scope MODULE, over the whole recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Literal

import numpy as np

from torchwatt.attribution.cross_check import check_counter
from torchwatt.attribution.metered_curve import build_metered_curve
from torchwatt.attribution.observed_windows import subtract_gaps
from torchwatt.attribution.power_integral import PowerIntegral, drop_unusable, find_increasing, integrate_power
from torchwatt.core.energy_curve import interpolate
from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, Event, IntArray, Meter, Recording, Series, Unavailable
from torchwatt.core.terms import MODULE_POWER, Domain
from torchwatt.core.units import NS_PER_S

CounterScope = Literal["gpu", "module", "unknown"]
MODULE_GPUS_FACT = "contains"  # a module's fact: its GPUs, as a ;-list

MIN_COMPARED_NS = NS_PER_S  # a shorter comparison contains only a few publications
COUNTER_DELAY_S = 0.1  # latency of a counter at one end: the longest publication interval of NVML observed is 100 ms
# The module must draw this much more than the GPU, or the counter's scope cannot be determined.
MIN_DIFFERENCE_REL = 0.1
# Distance of the counter from the scope that it follows, as a part of the distance between the two: power sensors are
# accurate to 5 %, and a quarter of a module's power is its CPU's and memory's.
SCOPE_TOLERANCE = 0.35
# Two GPUs whose module power agrees to this, in total and in each second, are on one module.
SAME_MODULE_REL, SAME_MODULE_SECOND_REL = 0.02, 0.1


@dataclass(frozen=True, slots=True)
class ScopeComparison:
    """Joules of one GPU over the time in which all three were read, and the resulting scope."""

    counter_j: float
    gpu_j: float
    module_j: float
    seconds: float
    scope: CounterScope
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class ScopedRecording:
    """A recording in which every counter belongs to its own domain, and events."""

    recording: Recording
    events: tuple[Event, ...] = ()


def assign_counter_scopes(recording: Recording, window: tuple[int, int] | None = None) -> ScopedRecording:
    """Assign each counter that covers a module to a domain `module:<n>`, and give its GPU the power at scope GPU.

    Where the scope is ambiguous, the GPU's joules come from power at scope GPU, and its band includes the counter's
    value. A recording without module power is unchanged except for the bands of counters that disagree with the power
    beside them; `window` is the run's.
    """
    compared = {
        meter.domain: compare_scopes(meter, recording) for meter in recording.meters if meter.domain.kind == "gpu"
    }
    events: list[Event] = []
    meters = []
    for meter in recording.meters:
        result = compared.get(meter.domain)
        if result is None:
            checked, disputes = check_counter(meter, recording, window)
            meters.append(checked)
            events += disputes
        elif result.scope == "gpu":
            meters.append(_add_note(meter, f"the energy counter covers the GPU alone: {result.why}"))
        else:
            meters.append(_remove_module_ring(_meter_by_power(meter, result), recording))
            events.append(_scope_event(meter, result, recording))
    covering = [
        m for m in recording.meters if (result := compared.get(m.domain)) is not None and result.scope == "module"
    ]
    modules = [
        _build_module_meter(index, group) for index, group in enumerate(group_covering_meters(covering, recording))
    ]
    series = [item for item in recording.series if not _is_dropped(item.channel, compared)]
    series += [moved for module in modules for moved in _move_readings(module, recording)]
    return ScopedRecording(replace(recording, meters=(*meters, *modules), series=tuple(series)), tuple(events))


def compare_scopes(meter: Meter, recording: Recording) -> ScopeComparison | None:
    """Return the scope of a GPU's counter; None without a counter, or without a module that draws more than the GPU."""
    counter, power = meter.channel("counter"), meter.channel("power")
    module = _integrate_series(recording.get(f"{meter.domain}/{MODULE_POWER}"))
    gpu = _integrate_series(recording.get(power.key)) if power is not None and _has_gpu_scope(power) else None
    if counter is None or recording.get(counter.key) is None or module is None or gpu is None:
        return None
    try:
        built = build_metered_curve(meter, recording)
    except SensorError:
        return None
    if isinstance(built, Unavailable):
        return None
    curve = built.curve
    common = _common_windows(curve.start_ns, curve.end_ns, (gpu, module), built.silent)
    seconds = float(np.diff(common, axis=1).sum()) / NS_PER_S
    counter_j = float(np.diff(curve.at(common), axis=1).sum())
    gpu_j, module_j = (float(np.diff(interpolate(common, t_ns, j), axis=1).sum()) for t_ns, j, _ in (gpu, module))
    if seconds * NS_PER_S >= MIN_COMPARED_NS and module_j - gpu_j <= MIN_DIFFERENCE_REL * gpu_j:
        return None
    scope, why = _classify_scope(counter_j, gpu_j, module_j, seconds)
    return ScopeComparison(counter_j, gpu_j, module_j, seconds, scope, why)


def _classify_scope(counter_j: float, gpu_j: float, module_j: float, seconds: float) -> tuple[CounterScope, str]:
    if seconds * NS_PER_S < MIN_COMPARED_NS:
        return "unknown", f"counter and power can be compared for {seconds:.2g} s only"
    watts = ", ".join(
        f"{name} {joules / seconds:.4g} W"
        for name, joules in (("counter", counter_j), ("GPU", gpu_j), ("module", module_j))
    )
    comparison = f"{watts} over {seconds:.3g} s"
    apart_j = module_j - gpu_j
    late = counter_j / seconds * COUNTER_DELAY_S / apart_j
    place = (counter_j - gpu_j) / apart_j  # 0 at scope GPU, 1 at scope MODULE
    if late > SCOPE_TOLERANCE:
        return "unknown", f"too short to distinguish the two: {comparison}"
    if abs(place) <= SCOPE_TOLERANCE:
        return "gpu", comparison
    return (
        ("module", comparison)
        if abs(place - 1) <= SCOPE_TOLERANCE
        else ("unknown", f"it matches neither: {comparison}")
    )


def _has_gpu_scope(channel: Channel) -> bool:
    """Return whether a power has a scope; the scope of the oldest call, `nvml_power`, on a superchip is unknown."""
    return channel.sensor in {"nvml_power_instant", "nvml_power_average"}


def _integrate_series(series: Series | None) -> PowerIntegral | None:
    if series is None:
        return None
    readings = drop_unusable(series)
    keep = find_increasing(readings.t_ns)
    if keep.sum() < 2:
        return None
    return integrate_power(Series(readings.channel, readings.t_ns[keep], readings.raw[keep], readings.late_ns[keep]))


def _common_windows(
    start_ns: int, end_ns: int, integrals: Sequence[PowerIntegral], silent: Sequence[tuple[int, int]]
) -> IntArray:
    """Return the intervals in which everything was read, (n, 2) instants."""
    lo = max(start_ns, *(int(t_ns[0]) for t_ns, _, _ in integrals))
    hi = min(end_ns, *(int(t_ns[-1]) for t_ns, _, _ in integrals))
    window = np.array([[lo, hi]] if hi > lo else [], dtype=np.int64).reshape(-1, 2)
    return subtract_gaps(window, (*silent, *(gap for _, _, gaps in integrals for gap in gaps)))


def _is_dropped(channel: Channel, by_domain: dict[Domain, ScopeComparison | None]) -> bool:
    """Return whether readings are no longer the GPU's own: those of a counter that does not cover it alone."""
    compared = by_domain.get(channel.domain)
    if compared is None or compared.scope == "gpu":
        return False
    return channel.quantity == "counter" or (compared.scope == "module" and channel.name == MODULE_POWER)


def _add_note(meter: Meter, note: str) -> Meter:
    return replace(meter, notes=(*meter.notes, note))


def _meter_by_power(meter: Meter, compared: ScopeComparison) -> Meter:
    """Return a GPU's meter without its counter; where that may have been its own, the band includes its value."""
    channels = tuple(channel for channel in meter.channels if channel.quantity != "counter")
    if compared.scope == "module":
        channels = tuple(channel for channel in channels if channel.name != MODULE_POWER)
        note = f"the energy counter covers the module, not the GPU: {compared.why}"
        return _add_note(replace(meter, channels=channels), note)
    band = meter.accuracy_rel
    if band is not None and compared.gpu_j > 0:
        upper_ratio = max(compared.counter_j, compared.module_j) / compared.gpu_j
        lower_ratio = min(compared.counter_j / compared.gpu_j, 1.0)
        band = (min(band[0], lower_ratio * (1 + band[0]) - 1), max(band[1], upper_ratio * (1 + band[1]) - 1))
    source = f"{meter.accuracy_source}; widened to the energy counter, whose scope is unknown"
    unsure = replace(meter, channels=channels, accuracy_rel=band, accuracy_source=source)
    return _add_note(unsure, f"the energy counter may cover the GPU or its module: {compared.why}")


def _remove_module_ring(gpu: Meter, recording: Recording) -> Meter:
    """Remove a driver's ring of samples that follows the module: layers would be fitted to its CPU, too."""
    module, polled = (_integrate_series(recording.get(f"{gpu.domain}/{name}")) for name in (MODULE_POWER, "power"))
    rings = [channel for channel in gpu.channels if channel.stamped]
    if module is None or polled is None or not rings:
        return gpu
    ring = _integrate_series(recording.get(rings[0].key))
    if ring is None:
        return gpu
    common = _common_windows(int(ring[0][0]), int(ring[0][-1]), (ring, module, polled), ())
    ring_j, module_j, gpu_j = (
        float(np.diff(interpolate(common, t_ns, joules), axis=1).sum()) for t_ns, joules, _ in (ring, module, polled)
    )
    if abs(ring_j - gpu_j) <= abs(ring_j - module_j):
        return gpu
    channels = tuple(channel for channel in gpu.channels if not channel.stamped)
    return _add_note(
        replace(gpu, channels=channels), "the driver's own samples cover the module: layers are fitted to polled power"
    )


def _scope_event(meter: Meter, compared: ScopeComparison, recording: Recording) -> Event:
    t_ns = max((int(series.t_ns[-1]) for series in recording.series if len(series)), default=0)
    if compared.scope == "module":
        message = (
            f"the energy counter covers the whole module, with its CPU and memory ({compared.why}): it counts once, "
            "and the GPU's own joules are its power at scope GPU"
        )
        return Event(t_ns, "info", "MODULE_COUNTER", str(meter.domain), message)
    message = (
        f"it is unknown whether the energy counter covers the GPU or its module ({compared.why}): power at scope GPU "
        "is used, and its interval extends to the counter"
    )
    return Event(t_ns, "warning", "SCOPE_UNKNOWN", str(meter.domain), message)


def group_covering_meters(covering: Sequence[Meter], recording: Recording) -> list[list[Meter]]:
    """Group GPUs of one module: equal CPU affinity, where known, and equal module power."""
    groups: list[list[Meter]] = []
    for meter in covering:
        home = next((group for group in groups if _share_module(group[0], meter, recording)), None)
        if home is None:
            groups.append([meter])
        else:
            home.append(meter)
    return groups


def _share_module(gpu: Meter, candidate: Meter, recording: Recording) -> bool:
    affinities = {meter.fact("cpu_affinity") or "" for meter in (gpu, candidate)} - {""}
    if len(affinities) > 1:
        return False
    meter_power, candidate_power = (
        _integrate_series(recording.get(f"{meter.domain}/{MODULE_POWER}")) for meter in (gpu, candidate)
    )
    if meter_power is None or candidate_power is None:
        return False
    common = _common_windows(int(meter_power[0][0]), int(meter_power[0][-1]), (meter_power, candidate_power), ())
    if not len(common):
        return False
    cuts = np.arange(common[0, 0], common[0, 1] + 1, NS_PER_S) if np.diff(common[0]) >= NS_PER_S else common[0]
    a_j, b_j = (np.diff(interpolate(cuts, *integral[:2])) for integral in (meter_power, candidate_power))
    equal_total = abs(fsum(a_j) - fsum(b_j)) <= SAME_MODULE_REL * fsum(a_j)
    return equal_total and bool(np.all(np.abs(a_j - b_j) <= SAME_MODULE_SECOND_REL * np.maximum(a_j, b_j)))


def _build_module_meter(index: int, group: Sequence[Meter]) -> Meter:
    """Return the meter of a module: the counter of the first of its GPUs, and the power at scope MODULE."""
    first_gpu, domain = group[0], Domain("module", index)
    parts = [str(meter.domain) for meter in group]
    channels = []
    for channel in first_gpu.channels:
        if channel.quantity == "counter":
            channels.append(replace(channel, domain=domain))
        elif channel.name == MODULE_POWER:
            channels.append(replace(channel, domain=domain, name="power", quantity="power"))
    facts = tuple((name, value) for name, value in first_gpu.facts if name in {"driver", "cpu_affinity"})
    return Meter(
        domain,
        tuple(channels),
        first_gpu.provenance,
        "device",
        first_gpu.model,
        first_gpu.vendor,
        first_gpu.accuracy_rel,
        first_gpu.accuracy_source,
        shared=any(meter.shared for meter in group),
        notes=(f"the energy counter of {parts[0]}, which covers {', '.join(parts)}, their CPU and memory",),
        facts=(*facts, (MODULE_GPUS_FACT, ";".join(parts))),
    )


def _move_readings(module: Meter, recording: Recording) -> list[Series]:
    """Return the readings of a module, which are stored under its first GPU."""
    gpu = (module.fact(MODULE_GPUS_FACT) or "").partition(";")[0]
    names = {"energy": "energy", "power": MODULE_POWER}
    readings = ((channel, recording.get(f"{gpu}/{names[channel.name]}")) for channel in module.channels)
    return [
        replace(series, channel=replace(channel, period_ns=series.channel.period_ns))
        for channel, series in readings
        if series is not None
    ]
