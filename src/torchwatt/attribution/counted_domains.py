"""Classify whether this process used a GPU; a GPU used only by other processes is excluded from the total."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum, sqrt
from typing import Literal

import numpy as np

from torchwatt.attribution.counter_scope import MODULE_GPUS_FACT, compare_scopes, group_covering_meters
from torchwatt.attribution.device_fit import CudaUse
from torchwatt.attribution.host_attribution import attribute_host
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.ledger import (
    Entry,
    Ledger,
    add_clause,
    book_entry,
    common_calls,
    interval_around,
    sum_if_known,
    total_self_j,
)
from torchwatt.core.meter import Event, Meter, Recording, Series
from torchwatt.core.terms import CUDA_LIBRARY, OTHER_PROCESSES, USERS, DeviceUsers, Domain, Slot, weakest_provenance
from torchwatt.core.trace import Trace
from torchwatt.core.units import Z90

CUDA_LIBRARY_KEY = f"process/{CUDA_LIBRARY}"
# An observation this long before the run still shows who used the device at its start.
OBSERVED_BEFORE_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Whether this run or only other processes used a device, and the evidence."""

    user: Literal["ours", "others", "unknown"]
    why: str = ""


def classify_device_use(
    recording: Recording,
    trace: Trace,
    cuda: CudaUse | None,
    start_ns: int,
    end_ns: int,
    named_by_user: frozenset[str] = frozenset(),
) -> dict[str, DeviceUse]:
    """Classify each GPU's use by this process or a descendant, by domain name; GPUs without observations are left out.

    A device is "others" only where that is proven; otherwise it is "unknown", with the reason. Devices that the user
    named are "ours" in any case.
    """
    observed = {
        str(meter.domain): users_of_gpu
        for meter in recording.meters
        if meter.domain.kind == "gpu" and (users_of_gpu := _observed_users(meter, recording, start_ns, end_ns))
    }
    named = {name for name, users in observed.items() if DeviceUsers.OURS in users}
    cuda_state = _CudaState.of(recording, cuda)
    worked = {activity.device for activity in trace.activities if len(activity)} | cuda_state.domains | named_by_user
    return {
        name: DeviceUse("ours")
        if name in worked | named
        else _classify_unlisted_device(users, cuda_state, elsewhere=bool(named))
        for name, users in observed.items()
    }


def _observed_users(meter: Meter, recording: Recording, start_ns: int, end_ns: int) -> frozenset[DeviceUsers]:
    series = recording.get(f"{meter.domain}/{USERS}")
    if series is None:
        return frozenset()
    observations = series.between(start_ns - OBSERVED_BEFORE_NS, end_ns)
    return frozenset(DeviceUsers(int(raw)) for raw in np.unique(observations.raw))


@dataclass(frozen=True, slots=True)
class _CudaState:
    """The state of CUDA in this process and its descendants; None where it could not be read."""

    own_library: bool | None
    child_library: bool | None
    initialised: bool
    domains: frozenset[str]

    @classmethod
    def of(cls, recording: Recording, cuda: CudaUse | None) -> _CudaState:
        series = recording.get(CUDA_LIBRARY_KEY)
        library_bits = int(series.raw.max()) if series is not None and len(series) else None
        own = None if library_bits is None else bool(library_bits & 1)
        if cuda is not None and cuda.library is not None:
            own = cuda.library or bool(own)
        child = None if library_bits is None else bool(library_bits & 2)
        return cls(own, child, cuda is not None and cuda.initialised, cuda.domains if cuda is not None else frozenset())


def _classify_unlisted_device(users: frozenset[DeviceUsers], cuda_state: _CudaState, *, elsewhere: bool) -> DeviceUse:
    """Classify a device that neither torch nor NVML's list shows as used by this process."""
    if DeviceUsers.HIDDEN in users:
        return DeviceUse(
            "unknown", "NVML lists processes on it that are not visible to this process, as in a container"
        )
    if proof := _other_user_proof(users, cuda_state, elsewhere=elsewhere):
        return DeviceUse("others", proof)
    why = "which files this process and its children have loaded cannot be read"
    if cuda_state.own_library or cuda_state.child_library:
        why = "CUDA is loaded"
    if cuda_state.initialised:
        why = "CUDA was initialised"
    return DeviceUse("unknown", f"{why}, and NVML lists this process on no GPU, as in a container that hides processes")


def _other_user_proof(users: frozenset[DeviceUsers], cuda_state: _CudaState, *, elsewhere: bool) -> str:
    """Return the proof that neither this process nor a descendant used the device; "" without proof."""
    if cuda_state.child_library is False and cuda_state.own_library is False and not cuda_state.initialised:
        return "neither this process nor a child of it has loaded CUDA"
    if cuda_state.child_library is False and cuda_state.domains:
        return "this process has its CUDA contexts on other GPUs, and no child has loaded CUDA"
    if elsewhere:
        return "NVML lists this process, or a child of it, on other GPUs and not on this one"
    return "" if cuda_state.initialised or DeviceUsers.EMPTY in users else "NVML lists no process of this run on it"


def exclude_foreign_device(ledger: Ledger, use: DeviceUse | None, module: str = "") -> tuple[Ledger, list[Event]]:
    """Exclude a device of other processes from the total, as one row, with an event; report unknown use.

    A device in a `module` remains in its total, as one row, since this process ran on the module's CPU.
    """
    if use is None or use.user == "ours":
        return ledger, []
    name = str(ledger.domain)
    if use.user == "unknown":
        message = f"{name} is in the total, though possibly only other processes used it: {use.why}"
        return ledger, [Event(0, "warning", "DEVICE_USER_UNKNOWN", name, message)]
    where = f"in {module}, in the row {OTHER_PROCESSES}" if module else "not in the total"
    message = f"{name} was not used by this run ({use.why}): its {ledger.energy_j:.4g} J are {where}"
    sentence = add_clause(ledger.sentence, f"not used by this run: {use.why}")
    excluded = replace(ledger, entries=_foreign_device_entry(ledger), counted=False, sentence=sentence)
    return excluded, [Event(0, "info", "OTHER_PROCESSES", name, message)]


def _foreign_device_entry(ledger: Ledger) -> tuple[Entry, ...]:
    if not ledger.entries:
        return ()
    half_j = None if ledger.energy_u_j is None else Z90 * ledger.energy_u_j
    entry = book_entry(
        ledger.domain,
        Slot(OTHER_PROCESSES, "other"),
        ledger.energy_j,
        ledger.known_s,
        method=ledger.method,
        provenance=ledger.provenance,
        static_j=sum_if_known(entry.energy_static_j for entry in ledger.entries),
        interval_j=interval_around(ledger.energy_j, half_j),
    )
    return (entry,)


MODULE_PART_KINDS = frozenset({"cpu", "dram", "ram"})  # kinds that every module has inside


def map_gpus_to_modules(meters: Sequence[Meter]) -> dict[str, str]:
    """Return the module of each GPU that is a part of one, by domain name."""
    modules = [meter for meter in meters if meter.domain.kind == "module"]
    return {gpu: str(module.domain) for module in modules for gpu in (module.fact(MODULE_GPUS_FACT) or "").split(";")}


def nest_module_ledgers(
    ledgers: Sequence[Ledger],
    curves: Sequence[EnergyCurve],
    meters: Sequence[Meter],
    trace: Trace,
    process_cpu: Series | None,
) -> tuple[Ledger, ...]:
    """Count each module once: ledgers of its GPUs, and of the host's CPU and memory, are taken out of the total.

    A module's rows are those of its GPUs and, of the remainder (CPU and memory), the host's by their share of time.
    """
    modules = [str(ledger.domain) for ledger in ledgers if ledger.domain.kind == "module"]
    if not modules:
        return tuple(ledgers)
    home = {gpu: module for gpu, module in map_gpus_to_modules(meters).items() if module in modules}
    lines = {str(curve.domain): curve for curve in curves}
    by_name = {str(ledger.domain): ledger for ledger in ledgers}
    nested = []
    for ledger in ledgers:
        name = str(ledger.domain)
        if name in modules:
            gpu_ledgers = [by_name[gpu] for gpu, module in home.items() if module == name and gpu in by_name]
            nested.append(_fill_module(ledger, gpu_ledgers, _host_row_builder(lines[name], trace, process_cpu)))
        elif name in home:
            nested.append(_exclude_part(ledger, home[name]))
        elif ledger.domain.kind in MODULE_PART_KINDS:
            nested.append(_exclude_part(ledger, ", ".join(modules)))
        else:
            nested.append(ledger)
    return tuple(nested)


def _exclude_part(ledger: Ledger, module: str) -> Ledger:
    """Take a ledger out of the total, since its joules are inside a module's."""
    sentence = add_clause(ledger.sentence, f"a part of {module}, not added to the total")
    return replace(ledger, counted=False, part_of=module, sentence=sentence)


def _fill_module(module: Ledger, gpus: Sequence[Ledger], host_rows: Callable[[float], tuple[Entry, ...]]) -> Ledger:
    """Return the module's ledger with the rows of its parts; unsplit where the parts exceed the module."""
    host_j = module.energy_j - fsum(gpu.energy_j for gpu in gpus)
    names = ", ".join(str(gpu.domain) for gpu in gpus) or "no GPU"
    if host_j <= 0:
        clause = f"not split into layers, since its parts ({names}) have more joules"
        return replace(module, sentence=add_clause(module.sentence, clause))
    rows = _merge_rows(module.domain, [*(entry for gpu in gpus for entry in gpu.entries), *host_rows(host_j)])
    rows[0] = replace(rows[0], energy_self_j=module.energy_j - total_self_j(rows[1:]))
    clause = f"rows of {names}, and of CPU and memory ({host_j:.4g} J, module less GPU) by the host's time"
    return replace(module, entries=tuple(rows), sentence=add_clause(module.sentence, clause))


def _host_row_builder(
    module: EnergyCurve, trace: Trace, process_cpu: Series | None
) -> Callable[[float], tuple[Entry, ...]]:
    """Return a function that books the module's remaining joules to the host's rows, at their mean power."""
    ends_ns = np.array([module.start_ns, module.end_ns], dtype=np.int64)

    def rows(host_j: float) -> tuple[Entry, ...]:
        flat = EnergyCurve(module.domain, ends_ns, np.array([0.0, host_j]), module.method, module.provenance)
        return attribute_host(flat, trace, process_cpu).entries(None, None)

    return rows


def _merge_rows(domain: Domain, entries: Iterable[Entry]) -> list[Entry]:
    """Add the parts' rows of equal name, phase and stage; the largest row comes first."""
    by_row: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        by_row.setdefault((entry.fqn, entry.phase, entry.stage), []).append(entry)
    rows = [_sum_rows(domain, same) for same in by_row.values()]
    return sorted(rows, key=lambda row: (-row.energy_self_j, row.fqn, row.phase, row.stage))


def _sum_rows(domain: Domain, same: Sequence[Entry]) -> Entry:
    """Add rows of different meters: joules, and the half-widths of their intervals in quadrature."""
    largest = max(same, key=lambda entry: entry.energy_self_j)
    if len(same) == 1:
        return replace(largest, domain=domain)
    energy_j = total_self_j(same)
    lower_widths = [None if e.energy_self_lo_j is None else e.energy_self_j - e.energy_self_lo_j for e in same]
    upper_widths = [None if e.energy_self_hi_j is None else e.energy_self_hi_j - e.energy_self_j for e in same]
    low_j, high_j = _root_sum_square_j(lower_widths), _root_sum_square_j(upper_widths)
    static_j = sum_if_known(e.energy_static_j for e in same)
    return replace(
        largest,
        domain=domain,
        energy_self_j=energy_j,
        energy_self_lo_j=None if low_j is None else max(energy_j - low_j, 0.0),
        energy_self_hi_j=None if high_j is None else energy_j + high_j,
        energy_static_j=static_j,
        energy_dynamic_j=None if static_j is None else energy_j - static_j,
        time_self_s=max(e.time_self_s for e in same),
        calls=common_calls(same),
        provenance=weakest_provenance(*(e.provenance for e in same)),
        carried_share=max(e.carried_share for e in same),
        measured_share=None,
        measured_in="",
        time_share_j=sum_if_known(e.time_share_j for e in same),
        energy_systematic_lo_j=sum_if_known(e.energy_systematic_lo_j for e in same),
        energy_systematic_hi_j=sum_if_known(e.energy_systematic_hi_j for e in same),
    )


def _root_sum_square_j(widths_j: Sequence[float | None]) -> float | None:
    return None if None in widths_j else sqrt(fsum(w * w for w in widths_j if w is not None))


def select_counted_domains(
    recording: Recording, used: Mapping[str, DeviceUse], *, early: bool = False
) -> dict[str, str]:
    """Return the domains whose meters count, each with its name in the report.

    The counter of a superchip's GPU stands for `module:<n>`; domains inside a module, and devices of other processes,
    are left out; with `early` also a GPU whose counter's scope is not known yet, and domains that would be inside.
    """
    meters = [m for m in recording.meters if any(c.quantity != "gauge" for c in m.channels)]
    names = {str(meter.domain): str(meter.domain) for meter in meters}
    scopes = {
        str(m.domain): compared.scope
        for m in meters
        if m.domain.kind == "gpu" and (compared := compare_scopes(m, recording))
    }
    groups = group_covering_meters([m for m in meters if scopes.get(str(m.domain)) == "module"], recording)
    for index, group in enumerate(groups):
        for meter in group:
            del names[str(meter.domain)]
        names[str(group[0].domain)] = f"module:{index}"
    unsure = {name for name, scope in scopes.items() if scope == "unknown"} if early else set()
    out = unsure | {name for name, use in used.items() if use.user == "others" and scopes.get(name) != "module"}
    out |= {str(meter.domain) for meter in meters if (groups or unsure) and meter.domain.kind in MODULE_PART_KINDS}
    return {domain: name for domain, name in names.items() if domain not in out}
