"""JSON content of journal frames: frozen values, validated against their types when read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from torchwatt.attribution.sensor_response import SensorModel
from torchwatt.carbon import PricingPlan
from torchwatt.core.errors import BundleError
from torchwatt.core.meter import Event, Meter, Unavailable
from torchwatt.core.report import Status, Window
from torchwatt.core.requests import RequestBatch
from torchwatt.core.terms import Slot
from torchwatt.core.trace import ReplayedPower
from torchwatt.reports.process_identity import ProcessIdentity

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class JournalHead:
    """Identity, meters and options of a run: all that a later report needs beside readings and spans.

    `lost_s` is the bound on the seconds of readings that are lost when everything is killed at once.
    """

    run_id: str
    name: str
    owner: ProcessIdentity
    mono_ns: int
    unix_ns: int
    meters: tuple[Meter, ...]
    lost_s: float
    unavailable: tuple[Unavailable, ...] = ()
    software: Mapping[str, str] = field(default_factory=dict)
    carbon: PricingPlan = field(default_factory=PricingPlan)
    layers: bool = True
    project: str = "default"
    sensors: Mapping[str, SensorModel] = field(default_factory=dict)
    replays: tuple[ReplayedPower, ...] = ()
    work: tuple[tuple[Slot, tuple[float, float]], ...] = ()


@dataclass(frozen=True, slots=True)
class RunStart:
    """Start of the run by both clocks."""

    start_ns: int
    start_unix_ns: int


@dataclass(frozen=True, slots=True)
class RunState:
    """State so far beside readings and spans; `open` are windows that have not ended."""

    units: dict[str, float] = field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    open: tuple[Window, ...] = ()
    events: tuple[Event, ...] = ()
    unavailable: tuple[Unavailable, ...] = ()
    mode: str = "none"


@dataclass(frozen=True, slots=True)
class EndedRequests:
    """Requests that ended one after another."""

    batches: tuple[RequestBatch, ...]


@dataclass(frozen=True, slots=True)
class RunStop:
    """How the block ended."""

    end_ns: int
    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class StoredNote:
    """One note of the sampler, as in its shared memory."""

    first_ns: int
    last_ns: int
    count: int
    severity: str
    code: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class StoredNotes:
    """The sampler's notes and counts."""

    notes: tuple[StoredNote, ...] = ()
    reads: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    failing_ns: dict[str, int] = field(default_factory=dict)
    cpu_ns: int = 0


def encode_record(value: Any) -> bytes:
    """Return a value as JSON."""
    return msgspec.json.encode(value)


def decode_record(data: bytes, kind: type[Record]) -> Record:
    """Decode a value of type `kind`.

    Raises:
        BundleError: The data do not match the type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BundleError(f"a frame does not contain a valid {kind.__name__}: {error}") from error
