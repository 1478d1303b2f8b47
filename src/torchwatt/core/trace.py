"""Spans of modules, optimizer, data and scopes, and the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.errors import TraceError
from torchwatt.core.meter import Event, IntArray
from torchwatt.core.terms import Domain, Phase, Slot


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """Records of one device as columns of equal length, in any order; times on the session's monotonic clock.

    `slot` and `signature` are indices into `slots` and `signatures`. Records with one signature (kernel name, grid and
    shapes) do the same work and draw about the same power in every layer. `filled` marks records that were not traced
    but extrapolated from a traced window. Records of different streams may overlap; durations are never summed across
    streams. `covered` holds the intervals (start_ns, end_ns) that were traced or filled: the device's activity outside
    of them is unknown, not idle. An empty `covered` means the whole run.
    """

    device: str  # the domain of its meter, such as "gpu:0"
    slots: tuple[Slot, ...]
    slot: IntArray
    start_ns: IntArray
    end_ns: IntArray
    stream: IntArray
    filled: NDArray[np.bool_]
    signatures: tuple[str, ...] = ("",)
    signature: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    covered: tuple[tuple[int, int], ...] = ()
    steps: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns) of steps on the device's timeline, where known
    notes: tuple[str, ...] = ()  # how records got their modules, and which have none: one sentence each

    def __post_init__(self) -> None:
        columns = (self.start_ns, self.end_ns, self.stream, self.filled)
        if any(len(column) != len(self.slot) for column in columns):
            raise TraceError(f"{self.device}: columns of an activity differ in length")
        if len(self.signature) not in {0, len(self.slot)}:
            raise TraceError(f"{self.device}: signatures are for all records or for none")
        if np.any(self.end_ns < self.start_ns):
            raise TraceError(f"{self.device}: a record ends before it starts")

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, records: NDArray[np.bool_]) -> Activity:
        """Return the same device with some of its records."""
        names = ("slot", "start_ns", "end_ns", "stream", "filled", *(("signature",) if len(self.signature) else ()))
        return replace(self, **{name: getattr(self, name)[records] for name in names})


@dataclass(frozen=True, slots=True)
class Span:
    """One interval of work on one thread; a row of a trace, for tests and small traces."""

    fqn: str
    phase: Phase
    start_ns: int
    end_ns: int
    thread: int = 0


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """Name, class and size of one module; `aliases` are its other names (shared modules)."""

    fqn: str
    class_name: str
    params: int = 0
    param_bytes: int = 0
    aliases: tuple[str, ...] = ()
    dtype: str = ""  # of its own parameters, or their quantisation; empty: it has none, or unknown


@dataclass(frozen=True, slots=True)
class FlopCeiling:
    """The most operations per second that a device was measured to do in matrix products of one type.

    Attributes:
        device: As in torch: `cpu`, `cuda:0`.
        dtype: `float32`, `bfloat16`.
        flops_per_s: Of the fastest product.
        width: Rows and columns of the matrices of that product.
        threads: Of torch, on a CPU; 0 elsewhere.
    """

    device: str
    dtype: str
    flops_per_s: float
    width: int
    threads: int


@dataclass(frozen=True, slots=True)
class SlotWork:
    """Mean work of one call of a slot, from the shapes of its traced calls; `slot` is an index."""

    slot: int
    flops: float
    bytes_moved: float
    rows: float  # of the input of a forward call: all dimensions but the last


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters of a model that generated tokens; shared ones count once.

    Attributes:
        class_name: The model's class.
        parameters: All parameters.
        expert_parameters: Of these, those of the routed experts of a mixture of experts.
        experts: Routed experts of each layer; 0: no mixture.
        experts_per_token: Experts that the configuration routes a token to; None: not stated.
    """

    class_name: str
    parameters: int
    expert_parameters: int = 0
    experts: int = 0
    experts_per_token: int | None = None

    def active_parameters(self, experts_per_token: float) -> int:
        """Return the parameters that are used for one token, where each layer routes it to that many experts."""
        if not self.experts:
            return self.parameters
        return round(self.parameters - self.expert_parameters * (1 - experts_per_token / self.experts))


ModuleKind = tuple[str, int]  # class and number of parameters: alike modules are of one kind


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Spans as columns of equal length, in any order.

    Spans of one thread are nested or disjoint; time belongs to the innermost one. `filled` marks spans that were not
    traced but extrapolated from a traced window (scaled to the step's duration). `calls` is the number of calls of a
    span: 1, or 0 for a fragment of a call. `carry_rel_sd` maps a slot index to the relative standard deviation of its
    share between windows: the uncertainty of extrapolating it.
    """

    slots: tuple[Slot, ...]
    slot: IntArray
    start_ns: IntArray
    end_ns: IntArray
    thread: IntArray
    filled: NDArray[np.bool_]
    calls: IntArray
    steps: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns)
    step_counts: tuple[int, ...] = ()  # number of steps in each of `steps`, in a long run; empty: one each
    modules: tuple[ModuleInfo, ...] = ()
    carry_rel_sd: Mapping[int, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    cost_s: float = 0.0  # time that tracing took on the user's threads, measured and extrapolated
    windows: int = 0  # number of traced backward windows
    activities: tuple[Activity, ...] = ()  # one for each device
    untold_calls: frozenset[int] = frozenset()  # slots whose number of calls is unknown
    step_stages: tuple[str, ...] = ()  # train, validation or inference, of each of `steps`; empty: unknown
    thread_busy: tuple[float, ...] = ()  # by thread number, the part of its spans' time on a CPU; empty: unknown
    thread_between: tuple[float, ...] = ()  # the same of the time between its spans; empty: unknown
    work: tuple[SlotWork, ...] = ()  # of the slots whose work is known
    traced_steps: int = 0  # steps whose modules were traced; the others are extrapolated from them

    def __post_init__(self) -> None:
        columns = (self.start_ns, self.end_ns, self.thread, self.filled, self.calls)
        if any(len(column) != len(self.slot) for column in columns):
            raise TraceError("columns of a trace differ in length")
        if np.any(self.end_ns < self.start_ns):
            raise TraceError("a span ends before it starts")
        if len(self.step_counts) not in {0, len(self.steps)}:
            raise TraceError("step counts are for all steps or for none")
        if len(self.step_stages) not in {0, len(self.steps)}:
            raise TraceError("stages are for all steps or for none")
        if len(self.thread_between) not in {0, len(self.thread_busy)}:
            text = f"{len(self.thread_between)} values for {len(self.thread_busy)} threads"
            raise TraceError(f"thread_between has {text}: give one for each thread, or none")
        if not all(0.0 <= part <= 1.0 for part in (*self.thread_busy, *self.thread_between)):
            raise TraceError("a thread is on a CPU for less than none or more than all of its time")
        if any(not 0 <= slot < len(self.slots) for slot in (*self.untold_calls, *(work.slot for work in self.work))):
            raise TraceError("untold calls or work are of a slot that the trace does not have")

    def __len__(self) -> int:
        return len(self.slot)


def trace_from_spans(spans: Sequence[Span], *, steps: Sequence[tuple[int, int]] = ()) -> Trace:
    """Return a trace with these spans."""
    slots = tuple(dict.fromkeys(Slot(s.fqn, s.phase) for s in spans))
    index = {slot: i for i, slot in enumerate(slots)}
    n = len(spans)
    return Trace(
        slots=slots,
        slot=np.array([index[Slot(s.fqn, s.phase)] for s in spans], dtype=np.int64),
        start_ns=np.array([s.start_ns for s in spans], dtype=np.int64),
        end_ns=np.array([s.end_ns for s in spans], dtype=np.int64),
        thread=np.array([s.thread for s in spans], dtype=np.int64),
        filled=np.zeros(n, dtype=np.bool_),
        calls=np.ones(n, dtype=np.int64),
        steps=tuple(steps),
    )


EMPTY_TRACE = trace_from_spans(())


@dataclass(frozen=True, slots=True)
class ReplayedPower:
    """Mean power of one domain while one layer ran in a loop.

    All `slots` do the same work (same class, parameters and input shapes), so one loop represents them all. `sd_w` is
    the standard deviation of the mean, of the readings and between loops.
    """

    domain: Domain
    slots: tuple[Slot, ...]
    power_w: float
    sd_w: float
    seconds: float
    loops: int
    call_s: float  # wall time of one call
    quiet_w: float | None = None  # idle power of the domain before the loop
