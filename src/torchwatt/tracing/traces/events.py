"""One event of a Kineto trace, with the fields that the join needs, decoded into types."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

EMPTY = msgspec.Raw(b"")


class Args(msgspec.Struct, gc=False):
    """The arguments of an event that the join reads; all others are skipped by the decoder.

    Grids, blocks and a HIP launch's kernel name stay raw JSON: they are compared, and rarely decoded.
    """

    correlation: int = -1
    sequence: int = msgspec.field(default=-1, name="Sequence number")
    forward_thread: int = msgspec.field(default=0, name="Fwd thread id")
    device: int = -1
    stream: int | str = -1
    grid: msgspec.Raw = EMPTY
    block: msgspec.Raw = EMPTY
    kernel: msgspec.Raw = EMPTY  # ROCm names the kernel at its launch
    graph_node: int = msgspec.field(default=-1, name="graph node id")
    collective: str = msgspec.field(default="", name="Collective name")


NO_ARGS = Args()


class Event(msgspec.Struct, gc=False):
    """One event; times in microseconds as written. Threads and devices are numbers or words, by torch's version."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | str = -1
    tid: int | str = -1
    ts: float = float("nan")
    dur: float = 0.0
    id: int | str = -1
    args: Args | None = None


class Head(msgspec.Struct):
    """The fields of a trace beside its events."""

    base_ns: int | None = msgspec.field(default=None, name="baseTimeNanoseconds")
    distributed: dict[str, object] = msgspec.field(default_factory=dict, name="distributedInfo")
    devices: list[dict[str, object]] = msgspec.field(default_factory=list, name="deviceProperties")


class Tail(Head):
    """The last block of a file: its remaining events and the fields that follow them."""

    events: list[Event] = msgspec.field(default_factory=list, name="traceEvents")


@dataclass(slots=True)
class Found:
    """Results of reading a file besides its events."""

    head: Head = field(default_factory=Head)
    malformed: int = 0  # events that cannot be interpreted and were left out
    truncated: bool = False  # the file ends inside its events
    complete: bool = False  # the end of the list of events was reached


# Errors of decoders for invalid JSON, which includes excessive nesting. The last one also covers integers with more
# digits than Python converts, and text with half a surrogate pair.
Refused = (msgspec.DecodeError, RecursionError, ValueError)

decode_events = msgspec.json.Decoder(list[Event]).decode
decode_tail = msgspec.json.Decoder(Tail).decode
