"""Find out whether this process used a GPU: a device that only others used is not in a run's total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from torchwatt.attribution.known import CudaUse
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Event, Meter, Recording
from torchwatt.core.report import Z90
from torchwatt.core.terms import CUDA_LIBRARY, OTHER_PROCESSES, USERS
from torchwatt.core.trace import Trace
from torchwatt.core.users import DeviceUsers

LIBRARY_KEY = f"process/{CUDA_LIBRARY}"
# An observation this long before the run still shows who used the device at its start.
BEFORE_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Use:
    """Who used a device during a run, and the evidence."""

    user: Literal["ours", "others", "unknown"]
    why: str = ""


def uses(
    recording: Recording,
    trace: Trace,
    cuda: CudaUse | None,
    start_ns: int,
    end_ns: int,
    named_by_user: frozenset[str] = frozenset(),
) -> dict[str, Use]:
    """Classify each GPU's use by this process or a descendant, by domain name; GPUs without observations are left out.

    A device is "others" only where that is proven; otherwise it is "unknown", with the reason. Devices that the user
    named are "ours" in any case.
    """
    observed = {
        str(meter.domain): users_of_gpu
        for meter in recording.meters
        if meter.domain.kind == "gpu" and (users_of_gpu := _looks(meter, recording, start_ns, end_ns))
    }
    named = {name for name, users in observed.items() if DeviceUsers.OURS in users}
    cuda_state = _Here.of(recording, cuda)
    worked = {activity.device for activity in trace.activities if len(activity)} | cuda_state.domains | named_by_user
    return {
        name: Use("ours") if name in worked | named else _use(users, cuda_state, elsewhere=bool(named))
        for name, users in observed.items()
    }


def _looks(meter: Meter, recording: Recording, start_ns: int, end_ns: int) -> frozenset[DeviceUsers]:
    series = recording.get(f"{meter.domain}/{USERS}")
    if series is None:
        return frozenset()
    observations = series.between(start_ns - BEFORE_NS, end_ns)
    return frozenset(DeviceUsers(int(raw)) for raw in np.unique(observations.raw))


@dataclass(frozen=True, slots=True)
class _Here:
    """The state of CUDA in this process and its descendants; None where it could not be read."""

    own_library: bool | None
    child_library: bool | None
    initialised: bool
    domains: frozenset[str]

    @classmethod
    def of(cls, recording: Recording, cuda: CudaUse | None) -> _Here:
        series = recording.get(LIBRARY_KEY)
        library_bits = int(series.raw.max()) if series is not None and len(series) else None
        own = None if library_bits is None else bool(library_bits & 1)
        if cuda is not None and cuda.library is not None:
            own = cuda.library or bool(own)
        child = None if library_bits is None else bool(library_bits & 2)
        return cls(own, child, cuda is not None and cuda.initialised, cuda.domains if cuda is not None else frozenset())


def _use(users: frozenset[DeviceUsers], cuda_state: _Here, *, elsewhere: bool) -> Use:
    """Classify a device that neither torch nor NVML's list shows as used by this process."""
    if DeviceUsers.HIDDEN in users:
        return Use("unknown", "NVML lists processes on it that are not visible to this process, as in a container")
    if proof := _proof(users, cuda_state, elsewhere=elsewhere):
        return Use("others", proof)
    why = "which files this process and its children have loaded cannot be read"
    if cuda_state.own_library or cuda_state.child_library:
        why = "CUDA is loaded"
    if cuda_state.initialised:
        why = "CUDA was initialised"
    return Use("unknown", f"{why}, and NVML lists this process on no GPU, as in a container that hides processes")


def _proof(users: frozenset[DeviceUsers], cuda_state: _Here, *, elsewhere: bool) -> str:
    """Return the proof that neither this process nor a descendant used the device; "" without proof."""
    if cuda_state.child_library is False and cuda_state.own_library is False and not cuda_state.initialised:
        return "neither this process nor a child of it has loaded CUDA"
    if cuda_state.child_library is False and cuda_state.domains:
        return "this process has its CUDA contexts on other GPUs, and no child has loaded CUDA"
    if elsewhere:
        return "NVML lists this process, or a child of it, on other GPUs and not on this one"
    return "" if cuda_state.initialised or DeviceUsers.EMPTY in users else "NVML lists no process of this run on it"


def set_apart(ledger: Ledger, use: Use | None, module: str = "") -> tuple[Ledger, list[Event]]:
    """Book a device of others to one row outside the total, with an event; also with an event if its use is unknown.

    A `module` counts with all devices on it, since this process ran on its CPU: the device's joules are a row of it.
    """
    if use is None or use.user == "ours":
        return ledger, []
    name = str(ledger.domain)
    if use.user == "unknown":
        message = f"{name} is in the total, though possibly only other processes used it: {use.why}"
        return ledger, [Event(0, "warning", "DEVICE_USER_UNKNOWN", name, message)]
    where = f"in {module}, in the row {OTHER_PROCESSES}" if module else "not in the total"
    message = f"{name} was not used by this run ({use.why}): its {ledger.energy_j:.4g} J are {where}"
    sentence = ledger.sentence.removesuffix(".") + f"; not used by this run: {use.why}."
    excluded = replace(ledger, entries=_one_row(ledger), counted=False, sentence=sentence)
    return excluded, [Event(0, "info", "OTHER_PROCESSES", name, message)]


def _one_row(ledger: Ledger) -> tuple[Entry, ...]:
    if not ledger.entries:
        return ()
    static_parts_j: Sequence[float | None] = [entry.energy_static_j for entry in ledger.entries]
    static_j = None if None in static_parts_j else min(sum(j for j in static_parts_j if j is not None), ledger.energy_j)
    u_j = ledger.energy_u_j
    return (
        Entry(
            ledger.domain,
            OTHER_PROCESSES,
            "other",
            ledger.energy_j,
            None if u_j is None else max(ledger.energy_j - Z90 * u_j, 0.0),
            None if u_j is None else ledger.energy_j + Z90 * u_j,
            static_j,
            None if static_j is None else ledger.energy_j - static_j,
            ledger.known_s,
            0,
            ledger.method,
            ledger.provenance,
        ),
    )
