"""Deduplicates energy across runs; used by `runs`, `fleet`, its SQL views and the workbook.

A meter includes every process on its device, so concurrent runs on one GPU report the same energy, a meter of a whole
machine includes its GPUs, and a copied bundle repeats its original. `count_once` counts all energy in exactly one run.
`count_once` reads no files, and the result does not depend on the order of the runs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from torchwatt.audit.bundle import Bundle
from torchwatt.audit.counted_run import (
    NOTHING,
    CountedDevice,
    CountedRun,
    Counter,
    RunShare,
    State,
    run_of_bundle,
)
from torchwatt.core.units import NS_PER_S

# Consecutive runs may overlap by rounding: a bundle stores their ends to the microsecond.
TOUCHING_NS = 1_000_000
# Raw counter readings give the overlap of two runs independently of clock changes, unless the counter was reset: runs
# further apart than this may have readings from before and after a restart of the driver.
CLOCK_NS = 60 * NS_PER_S
MACHINE = frozenset({"node", "host", "system", "psu"})  # kinds of meters that cover a whole machine
PLATFORM = "psys"
_ON_PLATFORM = frozenset({"cpu", "memory"})
Interval = tuple[int, int]


def count_once(runs: Iterable[CountedRun]) -> dict[str, RunShare]:
    """Return the part of each run that sums include, by run name.

    - A run that occurs twice, or whose devices all repeat the raw readings and duration of another run (without
      readings: its start, duration and joules), is a copy and adds nothing.
    - Runs of the ranks of a merged job are parts of it and add nothing beside it.
    - If concurrent runs metered the same device, or a device and its container, the common joules go to the container,
      and among equals to the longest run. The common part is computed from raw counter readings where all have them,
      else from the common time.
    - A run is excluded if a device without a key ran beside a device that may be the same one, or if it reports
      another session on devices without keys.
    """
    ordered = sorted(runs, key=lambda run: (run.start_ns, -run.end_ns, run.run_id, run.name))
    copies, parts = _copies(ordered), _job_parts(ordered)
    metered = [run for run in ordered if run.name not in parts]
    shares, neighbours = _shares_of_devices(_metered_devices(metered, copies))
    unknown = _unidentified_runs(_metered_devices(metered, copies))
    result: dict[str, RunShare] = {}
    times: dict[str, Interval] = {}
    for run in sorted(ordered, key=lambda run: (run.start_ns - run.end_ns, run.start_ns, run.run_id, run.name)):
        neighbour_names = frozenset(neighbours.get(run.name, ())) | {copies[key] for key in _keys(run) if key in copies}
        state = _state(run, copies, parts, unknown, neighbour_names)
        mine = {d.device_id: _share(state, (run.name, d.device_id), copies, shares) for d in run.devices}
        told_j = fsum(d.energy_j for d in run.devices) if run.devices else None
        once_j = fsum(d.energy_j * mine[d.device_id] for d in run.devices) if run.devices else None
        taken_ns = _covered_length(
            [times[name] for name in neighbour_names if name in times], (run.start_ns, run.end_ns)
        )
        seconds = 0.0 if state in NOTHING else max(run.duration_s - taken_ns / NS_PER_S, 0.0)
        identified = all(device.key for device in run.devices)
        result[run.name] = RunShare(state, told_j, once_j, seconds, mine, tuple(sorted(neighbour_names)), identified)
        if state not in NOTHING:
            times[run.name] = (run.start_ns, run.end_ns)
    return result


def count_bundles(bundles: Sequence[Bundle]) -> tuple[tuple[Bundle, RunShare], ...]:
    """Return bundles in their order, each with its part in sums over all of them."""
    names = [str(index) for index in range(len(bundles))]
    shares = count_once(run_of_bundle(bundle, name) for bundle, name in zip(bundles, names, strict=True))
    return tuple((bundle, shares[name]) for bundle, name in zip(bundles, names, strict=True))


def _keys(run: CountedRun) -> Iterator[tuple[str, str]]:
    return ((run.name, device.device_id) for device in run.devices)


def _share(
    state: State, key: tuple[str, str], copies: Mapping[tuple[str, str], str], shares: Mapping[tuple[str, str], float]
) -> float:
    return 0.0 if state in NOTHING or key in copies else shares.get(key, 1.0)


def _state(
    run: CountedRun,
    copies: Mapping[tuple[str, str], str],
    parts: frozenset[str],
    unknown: frozenset[str],
    neighbour_names: frozenset[str],
) -> State:
    if run.name in parts:
        return "part of a job"
    if (run.name, "") in copies or (run.devices and all(key in copies for key in _keys(run))):
        return "copy"
    if run.overlaps and not all(device.key for device in run.devices):
        return "overlapping"
    if run.name in unknown:
        return "unidentified"
    return "shared" if neighbour_names else "yes"


def _copies(ordered: Sequence[CountedRun]) -> dict[tuple[str, str], str]:
    """Map (run, device) to the run that has the same measurement; with an empty device, to the same run."""
    ids: dict[str, str] = {}
    originals: dict[tuple[object, ...], str] = {}
    copies: dict[tuple[str, str], str] = {}
    for run in ordered:
        twin = ids.setdefault(run.run_id, run.name)
        if twin != run.name:
            copies |= dict.fromkeys([(run.name, ""), *_keys(run)], twin)
            continue
        for device in run.devices:
            original = originals.setdefault(_measurement(run, device), run.name) if device.energy_j > 0 else run.name
            if original != run.name:
                copies[run.name, device.device_id] = original
    by_name = {run.name: run for run in ordered}
    for run in ordered:
        for name in {copies[key] for key in _keys(run) if key in copies}:
            # A copy with other dates: devices without a counter are copies if a device with a counter is one.
            same = {(d.device_id, d.key, d.energy_j) for d in by_name[name].devices}
            copies |= {(run.name, d.device_id): name for d in run.devices if (d.device_id, d.key, d.energy_j) in same}
    return copies


def _measurement(run: CountedRun, device: CountedDevice) -> tuple[object, ...]:
    """Return a key that two measurements share only if one is a copy of the other."""
    counter = device.counter
    if counter is not None and counter.end_raw > counter.start_raw:
        return device.kind, device.key, counter, run.duration_s
    return device.device_id, device.key, run.start_ns, run.duration_s, device.energy_j


def _job_parts(ordered: Sequence[CountedRun]) -> frozenset[str]:
    jobs = {source: run.name for run in ordered for source in run.sources}
    return frozenset(run.name for run in ordered if jobs.get(run.run_id, run.name) != run.name)


@dataclass(frozen=True, slots=True, eq=False)
class _MeteredDevice:
    """A device of a run; `own` is its key, `outer` the keys of all containers; empty if unknown."""

    run: CountedRun
    device: CountedDevice
    own: str
    outer: frozenset[str]
    depth: int

    @property
    def time(self) -> Interval:
        return self.run.start_ns, self.run.end_ns

    @property
    def key(self) -> tuple[str, str]:
        return self.run.name, self.device.device_id

    @property
    def offers(self) -> tuple[str, ...]:
        """Return the keys to index it by: its own, and its family on its machine (which contains process shares)."""
        device = self.device
        covers_device = device.scope == "device" and device.machine
        return (self.own, f"{device.family} of {device.machine}") if covers_device else (self.own,)


def _metered_devices(runs: Sequence[CountedRun], copies: Mapping[tuple[str, str], str]) -> list[_MeteredDevice]:
    """Return the devices with energy, without copies: containers first, among equals those of the longest run."""
    outer: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for inner, container in run.contained:
            outer[inner].add(container)
    devices = [
        _place_device(run, device, outer)
        for run in runs
        for device in run.devices
        if device.energy_j > 0 and (run.name, device.device_id) not in copies
    ]
    return sorted(devices, key=lambda m: (m.depth, m.time[0] - m.time[1], m.time[0], m.run.run_id, m.key))


def _place_device(run: CountedRun, device: CountedDevice, outer: Mapping[str, set[str]]) -> _MeteredDevice:
    machine, platform = f"machine {device.machine}", f"platform {device.machine}"
    if device.kind in MACHINE:
        return _MeteredDevice(run, device, machine if device.machine else device.key, frozenset(), 0)
    above = _containers_of(device.key, outer)
    depth = 2 + len(above)
    if device.machine:
        above.add(machine)
    if device.kind == PLATFORM:
        return _MeteredDevice(run, device, platform if device.machine else device.key, frozenset(above), 1)
    if device.machine and device.family in _ON_PLATFORM:
        above.add(platform)
    if device.machine and device.scope == "process":
        above.add(f"{device.family} of {device.machine}")
        depth += len(outer) + 1
    return _MeteredDevice(run, device, device.key, frozenset(above), depth)


def _containers_of(key: str, outer: Mapping[str, set[str]]) -> set[str]:
    """Return the keys of all direct and indirect containers of a device, over all runs."""
    containers: set[str] = set()
    waiting = [key] if key else []
    while waiting:
        for container in outer.get(waiting.pop(), ()):
            if container not in containers and container != key:
                containers.add(container)
                waiting.append(container)
    return containers


class _MeterTimeline:
    """Index of the metered intervals with one key, by time."""

    def __init__(self) -> None:
        self._by_start: list[tuple[int, int]] = []
        self._at: list[_MeteredDevice] = []
        self._longest_ns = 0

    def add(self, metered: _MeteredDevice) -> None:
        start_ns, end_ns = metered.time
        insort(self._by_start, (start_ns, len(self._at)))
        self._at.append(metered)
        self._longest_ns = max(self._longest_ns, end_ns - start_ns)

    def beside(self, metered: _MeteredDevice) -> Iterator[_MeteredDevice]:
        """Yield devices of other runs whose time is within `CLOCK_NS` of this one."""
        start_ns, end_ns = metered.time[0] - CLOCK_NS, metered.time[1] + CLOCK_NS
        at = bisect_left(self._by_start, (start_ns - self._longest_ns, 0))
        while at < len(self._by_start) and self._by_start[at][0] < end_ns:
            candidate = self._at[self._by_start[at][1]]
            if candidate.run.name != metered.run.name and candidate.time[1] > start_ns:
                yield candidate
            at += 1


def _shares_of_devices(ordered: Sequence[_MeteredDevice]) -> tuple[dict[tuple[str, str], float], dict[str, set[str]]]:
    """Return the counted fraction of each (run, device), and for each run the runs that metered the same energy."""
    timelines: dict[str, _MeterTimeline] = defaultdict(_MeterTimeline)
    shares: dict[tuple[str, str], float] = {}
    neighbours: dict[str, set[str]] = defaultdict(set)
    for metered in ordered:
        if not metered.own:
            continue
        names = [name for name in (metered.own, *sorted(metered.outer)) if name in timelines]
        near = [candidate for name in names for candidate in timelines[name].beside(metered)]
        common, bounds = _common_intervals(metered, near)
        if common:
            shares[metered.key] = 1.0 - _covered_length(list(common.values()), bounds) / max(bounds[1] - bounds[0], 1)
        for name, _ in common:
            neighbours[name].add(metered.run.name)
            neighbours[metered.run.name].add(name)
        for name in metered.offers:
            timelines[name].add(metered)
    return shares, neighbours


def _common_intervals(
    metered: _MeteredDevice, near: Sequence[_MeteredDevice]
) -> tuple[dict[tuple[str, str], Interval], Interval]:
    """Return the intervals shared with a device, by (run, device), and its own: in counter units, else ns."""
    counter = metered.device.counter
    raw = {neighbour.key: _raw_interval_of(metered, neighbour) for neighbour in near}
    readings = {key: interval for key, interval in raw.items() if interval is not None}
    if counter is not None and len(readings) == len(raw):
        mine = counter.start_raw, counter.end_raw
        overlaps = {key: _intersection(interval, mine) for key, interval in readings.items()}
        return {key: (lo, hi) for key, (lo, hi) in overlaps.items() if hi > lo}, mine
    separate = {key for key, interval in readings.items() if counter is not None and _is_apart(counter, interval)}
    overlaps = {
        neighbour.key: _intersection(neighbour.time, metered.time)
        for neighbour in near
        if neighbour.key not in separate
    }
    return {key: (lo, hi) for key, (lo, hi) in overlaps.items() if hi - lo > TOUCHING_NS}, metered.time


def _is_apart(counter: Counter, interval: Interval) -> bool:
    lo, hi = _intersection((counter.start_raw, counter.end_raw), interval)
    return hi <= lo


def _raw_interval_of(reference: _MeteredDevice, neighbour: _MeteredDevice) -> Interval | None:
    """Return another run's readings on the unwrapped axis of this run; None if of other counters or not advancing.

    Readings of a wrapping counter are known modulo `modulus_raw`. The later of two concurrent runs began within the
    range that the earlier one counted: below one modulus that is unique, above it the start times decide.
    """
    a, b = reference.device.counter, neighbour.device.counter
    if (
        a is None
        or b is None
        or reference.own != neighbour.own
        or (a.unit_j, a.modulus_raw) != (b.unit_j, b.modulus_raw)
    ):
        return None
    used_raw = b.end_raw - b.start_raw
    if min(a.end_raw - a.start_raw, used_raw) <= 0:
        return None
    start_raw = b.start_raw
    if a.modulus_raw:
        if reference.time[0] >= neighbour.time[1] or neighbour.time[0] >= reference.time[1]:
            return a.end_raw, a.end_raw  # wraps between the runs are unknown, and they have nothing in common
        later = reference.time[0] <= neighbour.time[0]
        offset_raw = _raw_advance(reference, neighbour) if later else _raw_advance(neighbour, reference)
        start_raw = a.start_raw + (offset_raw if later else -offset_raw)
    return start_raw, start_raw + used_raw


def _raw_advance(earlier: _MeteredDevice, later: _MeteredDevice) -> int:
    """Return the raw units by which a wrapping counter advanced between the starts of two runs."""
    a, b = earlier.device.counter, later.device.counter
    if a is None or b is None:
        return 0
    least, used = (b.start_raw - a.start_raw) % a.modulus_raw, a.end_raw - a.start_raw
    passed = (later.time[0] - earlier.time[0]) / max(earlier.time[1] - earlier.time[0], 1)
    turns = round((used * passed - least) / a.modulus_raw) if used >= a.modulus_raw else 0
    return least + max(turns, 0) * a.modulus_raw


def _intersection(interval: Interval, bounds: Interval) -> Interval:
    return max(interval[0], bounds[0]), min(interval[1], bounds[1])


def _covered_length(intervals: Sequence[Interval], bounds: Interval) -> int:
    """Return the length of the part of `bounds` that the union of `intervals` covers."""
    covered, reached = 0, bounds[0]
    for lo, hi in sorted(_intersection(interval, bounds) for interval in intervals):
        covered += max(hi - max(lo, reached), 0)
        reached = max(reached, hi)
    return covered


def _unidentified_runs(ordered: Sequence[_MeteredDevice]) -> frozenset[str]:
    """Return the runs with a device without a key that ran beside a device that may be the same one.

    Shares with scope `process` are taken as of different processes (but see `CountedRun.overlaps`).
    """
    timelines: dict[str, _MeterTimeline] = defaultdict(_MeterTimeline)
    for metered in ordered:
        timelines[metered.device.family].add(metered)
    return frozenset(
        metered.run.name
        for metered in ordered
        if not metered.own
        and metered.device.scope == "device"
        and any(
            _may_be_same_device(metered, candidate) for candidate in timelines[metered.device.family].beside(metered)
        )
    )


def _may_be_same_device(metered: _MeteredDevice, candidate: _MeteredDevice) -> bool:
    lo, hi = _intersection(metered.time, candidate.time)
    machines = {metered.device.machine, candidate.device.machine} - {""}
    return hi - lo > TOUCHING_NS and len(machines) < 2
