"""The rows of a log, and what else is kept of a thread's work. Values only."""

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
STEP_KEY = -4  # a step of which only the end was noted
COMMUNICATION_KEY = -5
UNCOUNTED_COMMUNICATION_KEY = -6  # waits for collectives and copies around them: no calls of their own
COMPILE_KEY = -8
COMPILED_KEY = 0  # of a compiler's graphs: their calls are part of what was compiled, and not logged
PROFILER_KEY = -7  # our own work: a decision about the next steps, a window that opens or closes
BACKWARD_KEY = -9  # a backward call, where it is counted like the modules that ran in a step
AROUND_KEY = -10  # torch.func's own time around a module's call, and after a backward call
FIRST_SCOPE_KEY = -20  # scopes count down from here; modules count up from 1

FORWARD_TASK = -1  # what torch says outside a backward call
FAILED_SIZE = -2  # of the graph of a call that raised: its next number is so far from its first
LIGHT_TASK = -2  # ours: an outermost call of a step whose modules were not traced; minus the number of its signature

# What a thread's wrappers do: log all calls, the outermost ones, only where steps end, or nothing.
FULL, LIGHT, ASLEEP, OFF = 0, 1, 2, 3

COMPACT_ROWS = 20_000  # at the end of a step
FORCE_ROWS = 100_000  # wherever we are


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The autograd nodes of one backward call, one entry each, on our clock."""

    start_ns: IntArray
    end_ns: IntArray
    seq: IntArray  # -1: AccumulateGrad
    forward_thread: IntArray  # torch's small ids, not the operating system's
    thread: IntArray


class Unread(Protocol):
    """Nodes that were recorded and not looked at yet."""

    def nodes(self) -> Nodes:
        """Return them; the first call does the work."""


@dataclass(slots=True, eq=False)
class Backward:
    """One outermost backward call and its place in the log: rows before it since the last one, and rows inside."""

    start_ns: int
    end_ns: int
    since: int
    first: int
    last: int
    light: bool  # of a step that was not traced
    reduces: bool = False  # DDP adds up the gradients of all ranks in it
    nodes: Nodes | Unread | None = None  # of a window
    cost_ns: int = 0  # of the window
    away_ns: int = 0  # of a recorded call: how long its thread did not run
    is_filed: bool = False  # its structure was looked at
    cache: dict[str, Any] = field(default_factory=dict)  # what assembly found out once
