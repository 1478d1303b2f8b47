"""The rows of a log, and other values recorded of a thread's work. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torchwatt.core.meter import IntArray

# key, start_ns, end_ns, first and next autograd sequence number, autograd graph task
Row = tuple[int, int, int, int, int, int]
KEY, START, END, SEQ0, SEQ1, TASK = range(6)

OPTIMIZER_KEY = -1
DATA_KEY = -2
UNKNOWN_KEY = -3
STEP_KEY = -4  # a step of which only the end was recorded
COMMUNICATION_KEY = -5
UNCOUNTED_COMMUNICATION_KEY = -6  # waits for collectives and copies around them: not calls of their own
COMPILE_KEY = -8
COMPILED_KEY = 0  # a compiler's graphs: their calls are part of the compiled module's call, and not logged
PROFILER_KEY = -7  # profiler work: a decision about the next steps, a window that opens or closes
BACKWARD_KEY = -9  # a backward call, where it is counted like the modules that ran in a step
AROUND_KEY = -10  # torch.func's own time around a module's call, and after a backward call
FIRST_SCOPE_KEY = -20  # scopes count down from here; modules count up from 1

FORWARD_TASK = -1  # torch's value outside a backward call
BACKWARD_TASK = 0  # any graph task: for rows of a backward pass whose task is unknown
FAILED_SIZE = -2  # graph size of a call that raised: its next sequence number minus its first
LIGHT_TASK = -2  # of an outermost call in an untraced step; less the number of the call's signature

# Modes of a thread's wrappers: log all calls, the outermost calls, only ends of steps, or nothing.
FULL, LIGHT, ASLEEP, OFF = 0, 1, 2, 3

COMPACT_ROWS = 20_000  # at the end of a step
FORCE_ROWS = 100_000  # also within a step


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The autograd nodes of one backward call, one entry each, on the session's clock."""

    start_ns: IntArray
    end_ns: IntArray
    seq: IntArray  # -1: AccumulateGrad
    forward_thread: IntArray  # torch's own thread numbers, not the operating system's
    thread: IntArray


class Unread(Protocol):
    """Recorded nodes that are not read yet."""

    def nodes(self) -> Nodes:
        """Return the nodes; the first call reads them."""


@dataclass(slots=True, eq=False)
class Backward:
    """One outermost backward call and its position in the log: rows since the last one, and rows inside."""

    start_ns: int
    end_ns: int
    since: int
    first: int
    last: int
    light: bool  # of a step that was not traced
    reduces: bool = False  # DDP reduces gradients in it
    nodes: Nodes | Unread | None = None  # of a window
    cost_ns: int = 0  # of the window
    away_ns: int = 0  # of a recorded call: how long its thread did not run
    is_filed: bool = False  # its structure is known
    cache: dict[str, Any] = field(default_factory=dict)  # results of assembly
