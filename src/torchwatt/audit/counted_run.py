"""Input and result of deduplication: devices and time of a run, and the share of its energy that sums include."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import fsum, isfinite
from typing import Any, Literal

from torchwatt.audit.bundle import Bundle, counted_devices, number, text, timestamp
from torchwatt.audit.schema import Row
from torchwatt.core.errors import BundleError
from torchwatt.core.units import ns_from_s

State = Literal["yes", "shared", "copy", "part of a job", "unidentified", "overlapping"]
ADDED: frozenset[str] = frozenset({"yes", "shared"})
NOTHING: frozenset[str] = frozenset({"copy", "part of a job"})  # all of their energy is counted in another run

FAMILIES: Mapping[str, str] = {"core": "cpu", "uncore": "cpu", "dram": "memory", "ram": "memory"}


@dataclass(frozen=True, slots=True)
class Counter:
    """First and last reading of a counter in a run, in units of the counter; the last one is unwrapped.

    `modulus_raw` is the value at which the counter wraps; 0 if it never wraps.
    """

    start_raw: int
    end_raw: int
    unit_j: float
    modulus_raw: int


@dataclass(frozen=True, slots=True)
class CountedDevice:
    """Energy of one device in the total of a run; `key` identifies the device and `machine` its host, empty if unknown.

    With scope `process`, the key identifies the process, and the energy is its share of the device.
    """

    device_id: str
    kind: str
    energy_j: float
    key: str = ""
    machine: str = ""
    scope: str = "device"
    counter: Counter | None = None

    @property
    def family(self) -> str:
        """Return the kind, with one common name for kinds whose meters can include the same joules."""
        return FAMILIES.get(self.kind, self.kind)


@dataclass(frozen=True, slots=True)
class CountedRun:
    """Input of `count_once` for one run; times are ns since 1970 (UTC).

    Args:
        name: Unique among the runs that are counted together.
        contained: Pairs of device keys (inner, container).
        sources: The runs of the ranks that a job was merged from.
        overlaps: The run has an event about another session on its devices.
    """

    name: str
    run_id: str
    start_ns: int
    end_ns: int
    duration_s: float
    devices: tuple[CountedDevice, ...] = ()
    contained: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class RunShare:
    """Part of a run that sums include.

    `energy_j` is the energy that no other run counts, None if nothing was metered; `shares` is the counted fraction of
    the energy of each device. `seconds` is the time of the run outside runs that metered the same energy, so the sum
    over runs is the length of the union of their intervals. `neighbours` names those runs.
    """

    state: State
    told_j: float | None  # as the run reports it
    energy_j: float | None
    seconds: float
    shares: Mapping[str, float] = field(default_factory=dict)
    neighbours: tuple[str, ...] = ()
    identified: bool = True  # False: a device has no key, so it may also be metered by another run

    @property
    def share(self) -> float:
        """Return the fraction of the run's energy, and so of its impacts, in sums."""
        if self.state in NOTHING:
            return 0.0
        return self.energy_j / self.told_j if self.energy_j is not None and self.told_j else 1.0


# Events of sessions that shared devices with another session of the same process.
OVERLAPPING = frozenset({"CONCURRENT_SESSION", "NESTED_SESSION"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def run_of_bundle(bundle: Bundle, name: str = "") -> CountedRun:
    """Return the input of `count_once` for a bundle; the default name is the run id."""
    run = bundle.run
    start_ns = (timestamp(run, "started_at") - _EPOCH) // timedelta(microseconds=1) * 1000
    duration_s = number(run, "duration_s") or 0.0
    keys = {text(row, "device_id"): text(row, "device_key") for row in bundle["device"]}
    pairs = ((text(row, "device_key"), keys.get(text(row, "parent_device_id"), "")) for row in bundle["device"])
    return CountedRun(
        name=name or text(run, "run_id"),
        run_id=text(run, "run_id"),
        start_ns=start_ns,
        end_ns=start_ns + ns_from_s(duration_s),
        duration_s=duration_s,
        devices=tuple(_device_of_row(row) for row in counted_devices(bundle) if number(row, "energy_j") is not None),
        contained=tuple(sorted({(inner, outer) for inner, outer in pairs if inner and outer})),
        sources=tuple(text(row, "source_run_id") for row in bundle["rank"] if row["status"] != "missing"),
        overlaps=any(row["code"] in OVERLAPPING for row in bundle["event"]),
    )


def _device_of_row(row: Row) -> CountedDevice:
    return CountedDevice(
        device_id=text(row, "device_id"),
        kind=text(row, "kind"),
        energy_j=number(row, "energy_j") or 0.0,
        key=text(row, "device_key"),
        machine=text(row, "machine_key"),
        scope=text(row, "scope") or "device",
        counter=_counter_of_row(row),
    )


def _counter_of_row(row: Row) -> Counter | None:
    cells = [row.get(name) for name in ("counter_start_raw", "counter_end_raw", "counter_wraps", "counter_modulus_raw")]
    start, end, wraps, modulus = (value if isinstance(value, int) else None for value in cells)
    unit_j = number(row, "counter_unit_j")
    if start is None or end is None or unit_j is None or (wraps and not modulus):
        return None
    return Counter(start, end + (wraps or 0) * (modulus or 0), unit_j, modulus or 0)


def text_of(run: CountedRun) -> str:
    """Return a run as one line of JSON, without its name."""
    devices = [
        [d.device_id, d.kind, d.energy_j, d.key, d.machine, d.scope, _raw_cells(d.counter)] for d in run.devices
    ]  # fmt: skip
    return json.dumps(
        [run.run_id, run.start_ns, run.end_ns, run.duration_s, devices, run.contained, run.sources, run.overlaps],
        separators=(",", ":"),
    )


def _raw_cells(counter: Counter | None) -> list[float] | None:
    if counter is None:
        return None
    return [counter.start_raw, counter.end_raw, counter.unit_j, counter.modulus_raw]


def run_of_text(content: str, name: str = "") -> CountedRun:
    """Parse the result of `text_of`.

    Raises:
        BundleError: The text has another form.
    """
    try:
        run_id, start_ns, end_ns, duration_s, devices, contained, sources, overlaps = json.loads(content)
        return CountedRun(
            name or _text(run_id),
            _text(run_id),
            _integer(start_ns),
            _integer(end_ns),
            _number(duration_s),
            tuple(_parse_device(*device) for device in devices),
            tuple((_text(inner), _text(outer)) for inner, outer in contained),
            tuple(map(_text, sources)),
            bool(overlaps),
        )
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise BundleError(f"{content[:80]!r} is not the metered devices of a run: {error}") from error


def _parse_device(*cells: Any) -> CountedDevice:
    device_id, kind, energy_j, key, machine, scope, raw = cells
    counter = None if raw is None else Counter(_integer(raw[0]), _integer(raw[1]), _number(raw[2]), _integer(raw[3]))
    names = (_text(device_id), _text(kind))
    return CountedDevice(*names, _number(energy_j), _text(key), _text(machine), _text(scope), counter)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


@dataclass(frozen=True, slots=True)
class RunTotals:
    """Totals of one run, and in `share` the part that sums include; None is unknown, never 0."""

    run_id: str
    boundary: str
    energy_j: float | None
    unit: str
    units: float
    location_g: float | None
    market_g: float | None
    basis: str = ""  # of the location-based grams; lifecycle and direct are not added
    name: str = ""  # as in `share.neighbours` of other runs
    share: RunShare | None = None  # None: not compared with other runs, counted completely

    @property
    def once_j(self) -> float | None:
        """Return the energy that sums include."""
        return self.energy_j if self.share is None or self.share.state == "yes" else self.share.energy_j

    def once_g(self, method: str) -> float | None:
        """Return the grams that sums include, by `location` or `market`, in proportion to the joules."""
        grams: float | None = getattr(self, f"{method}_g")
        return grams if grams is None or self.share is None else grams * self.share.share


@dataclass(frozen=True, slots=True)
class SumOfRuns:
    """Sums of `runs` runs; `refused` lists what was not added and why, `shared` what was counted only once."""

    runs: int
    energy_j: float | None
    unit: str
    units: float | None
    location_g: float | None
    market_g: float | None
    refused: tuple[str, ...]
    shared: tuple[str, ...] = ()
    is_complete: bool = True  # False: some energy is counted in a run that is not among these

    @property
    def j_per_unit(self) -> float | None:
        """Return energy per unit; None unless both sums are complete."""
        return self.energy_j / self.units if self.energy_j is not None and self.units and self.is_complete else None


def sum_runs(runs: Iterable[RunTotals]) -> SumOfRuns:
    """Sum runs; a sum of different boundaries, units or bases is None and listed in `refused`.

    Location- and market-based grams are separate sums, each only if every run has that method. If runs have a `share`,
    each joule is added once, and runs that share devices to an unknown extent are left out.
    """
    everything = list(runs)
    added = [run for run in everything if run.share is None or run.share.state in ADDED]
    refused: list[str] = list(_excluded_runs(everything))
    energy_j = _sum_of_energy(added, refused)
    units = {run.unit for run in added}
    if len(units) > 1:
        refused.append(f"units {', '.join(sorted(units))}: no sum of different things")
    bases = {run.basis for run in added if run.location_g is not None}
    if len(bases) > 1:
        refused.append(f"location-based grams: {', '.join(sorted(bases))} are different bases")
    return SumOfRuns(
        runs=len(added),
        energy_j=energy_j,
        unit=next(iter(units)) if len(units) == 1 else "",
        units=fsum(run.units for run in added) if len(units) == 1 else None,
        location_g=None if energy_j is None or len(bases) > 1 else _sum_of_grams(added, "location", refused),
        market_g=None if energy_j is None else _sum_of_grams(added, "market", refused),
        refused=tuple(refused),
        shared=(*_shared_runs(everything), *_unidentified_devices(added)),
        is_complete={name for run in added if run.share is not None for name in run.share.neighbours}
        <= {run.name for run in everything},
    )


_REASONS = {
    "unidentified": "ran beside runs that may have metered the same devices: these are not identified",
    "overlapping": "ran beside another session on the same devices, which are not identified",
}


def _excluded_runs(runs: list[RunTotals]) -> Iterator[str]:
    for state, why in _REASONS.items():
        if excluded := [run for run in runs if run.share is not None and run.share.state == state]:
            yield f"{_run_names(excluded)}: {why}"


def _shared_runs(runs: list[RunTotals]) -> Iterator[str]:
    if copies := [run for run in runs if run.share is not None and run.share.state in NOTHING]:
        yield f"{_run_names(copies)}: the same measurement as another run, or a part of a job that is kept"
    shares = [run.share for run in runs if run.share is not None and run.share.state == "shared"]
    if shares:
        told_j, once_j, seconds = (
            fsum(values)
            for values in zip(*((s.told_j or 0.0, s.energy_j or 0.0, s.seconds) for s in shares), strict=True)
        )
        same = f"{len(shares)} shared the same devices at the same time" if len(shares) > 1 else "1 shared its devices"
        once = f"counted once {once_j:.6g} J in {seconds:.6g} s (union of the intervals)"
        yield f"{same}: {told_j:.6g} J as they say, {once}"


def _unidentified_devices(runs: list[RunTotals]) -> Iterator[str]:
    if unidentified := [run for run in runs if run.share is not None and not run.share.identified]:
        yield f"{_run_names(unidentified)}: not all devices are identified; added, as no other run was beside them"


def _run_names(runs: list[RunTotals]) -> str:
    shown = ", ".join(run.run_id for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    return f"{len(runs)} of the runs ({shown})"


def _sum_of_energy(runs: list[RunTotals], refused: list[str]) -> float | None:
    boundaries = {run.boundary for run in runs}
    if len(boundaries) > 1:
        shown = " and ".join(sorted(boundary or "nothing metered" for boundary in boundaries))
        refused.append(f"energy: the runs have different boundaries ({shown})")
        return None
    energies_j = [joules for run in runs if (joules := run.once_j) is not None]
    return fsum(energies_j) if energies_j and len(energies_j) == len(runs) else None


def _sum_of_grams(runs: list[RunTotals], method: str, refused: list[str]) -> float | None:
    values_g = [grams for run in runs if (grams := run.once_g(method)) is not None]
    if values_g and len(values_g) < len(runs):
        refused.append(f"{method}-based grams: only {len(values_g)} of {len(runs)} runs have them")
        return None
    return fsum(values_g) if values_g else None
