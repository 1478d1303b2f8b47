"""The rows of a log, and other values recorded of a thread's work. Values only."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np

from torchwatt.core.intervals import top_level
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
OUTERMOST_TASK = -2  # of an outermost call in an untraced step; less the number of the call's signature

# Modes of a thread's wrappers: log all calls, the outermost calls, only ends of steps, or nothing.
ALL_CALLS, OUTERMOST, STEP_ENDS, OFF = 0, 1, 2, 3

COMPACT_ROWS = 20_000  # at the end of a step
FORCE_ROWS = 100_000  # also within a step


@dataclass(frozen=True, slots=True, eq=False)
class AutogradNodes:
    """The autograd nodes of one backward call, one entry each, on the session's clock."""

    start_ns: IntArray
    end_ns: IntArray
    seq: IntArray  # -1: AccumulateGrad
    forward_thread: IntArray  # torch's own thread numbers, not the operating system's
    thread: IntArray


class UnreadNodes(Protocol):
    """Recorded nodes that are not read yet."""

    def nodes(self) -> AutogradNodes:
        """Return the nodes; the first call reads them."""


@dataclass(slots=True, eq=False)
class BackwardCall:
    """One outermost backward call and its position in the log: rows since the last one, and rows inside."""

    start_ns: int
    end_ns: int
    since: int
    first: int
    last: int
    light: bool  # of a step that was not traced
    reduces: bool = False  # DDP reduces gradients in it
    nodes: AutogradNodes | UnreadNodes | None = None  # of a window
    cost_ns: int = 0  # of the window
    away_ns: int = 0  # of a recorded call: how long its thread did not run
    is_filed: bool = False  # its structure is known
    cache: dict[str, Any] = field(default_factory=dict)  # results of assembly


NO_STAGE = 0  # number of the stage without a name
NO_CHANGES: IntArray = np.zeros((0, 2), dtype=np.int64)  # of stages


class OpenStage(NamedTuple):
    """A stage that has begun: its number, the key of its rows, and when it began."""

    number: int
    key: int
    start_ns: int


def stages_at(changes: IntArray, t_ns: IntArray) -> IntArray:
    """Return the number of a thread's stage at each of some times.

    Args:
        changes: Times, in order, and the number of the stage from then on; shape (n, 2).
        t_ns: Times; a change holds from its own time on.
    """
    numbers: IntArray = np.append(changes[:, 1], NO_STAGE)[np.searchsorted(changes[:, 0], t_ns, side="right") - 1]
    return numbers


NO_ROWS: IntArray = np.empty((0, 6), dtype=np.int64)


class ReadableLog(Protocol):
    """What a reader uses of a thread's log."""

    lock: threading.RLock
    backwards: list[BackwardCall]
    ends: list[tuple[int, int]]
    noted: list[Row]

    def compact(self) -> None:
        """Move the tuples into an array."""

    def rows_from(self, position: int) -> list[IntArray]:
        """Return the compacted rows from a position of the table on, in parts."""

    def book_ends(self) -> None:
        """Move ends of optimizer steps to the readers."""


class LogReader:
    """Returns the entries added to a log since the last read; entries folded meanwhile are kept unfolded."""

    __slots__ = ("_calls", "_ends", "_log", "_position", "_rows", "_until_ns")

    def __init__(self, log: ReadableLog, position: int, until_ns: int) -> None:
        self._log = log
        self._position = position  # in the log's table
        self._until_ns = until_ns  # end of the latest backward call that was returned
        self._rows: list[IntArray] = []
        self._calls: list[BackwardCall] = []
        self._ends: list[tuple[int, int]] = []

    def take(self) -> tuple[IntArray, list[BackwardCall], list[tuple[int, int]]]:
        """Return new rows, backward calls, and ends of optimizer steps (key, end_ns)."""
        with self._log.lock:
            self._log.compact()
            self.keep()
            rows, calls, ends = self._rows, self._calls, self._ends
            self._rows, self._calls, self._ends = [], [], []
        return np.concatenate(rows) if rows else NO_ROWS, calls, ends

    def keep(self) -> None:
        """Copy new entries before rows are moved."""
        rows = self._log.rows_from(self._position)
        self._rows += rows
        self._position += sum(len(each) for each in rows)
        for call in reversed(self._log.backwards):
            if call.end_ns <= self._until_ns:
                break
            self._calls.append(call)
        self._until_ns = max((call.end_ns for call in self._calls), default=self._until_ns)
        self._log.book_ends()

    def ended(self, ends: Sequence[tuple[int, int]]) -> None:
        """Add ends of optimizer steps."""
        self._ends.extend(ends)

    def waiting(self) -> int:
        """Return the number of unread ends of optimizer steps; cheap."""
        return len(self._ends) + len(self._log.ends) + len(self._log.noted)

    def moved(self, position: int) -> None:
        """Continue at a position of the new table."""
        self._position = position


MOST_REPEATS = 8  # the ninth backward call through one forward pass counts as the eighth
FEW_ROWS = 8

StructureKey = tuple[object, ...]
PARTIAL = "partial"  # structure of a backward call whose forward pass was not, or only partly, recorded
OutermostRow = tuple[int, int, int]


def keys_of(table: IntArray, call: BackwardCall, before: BackwardCall | None) -> tuple[StructureKey, ...]:
    """Return a call's structures, the finest first; stored in its cache, as is where its traced steps begin."""
    keys: tuple[StructureKey, ...] | None = call.cache.get("keys")
    if keys is None:
        fine, coarse = forward_structure(table[call.since : call.first])
        if coarse is None and before is not None:
            # Another backward call through the same forward pass (two losses, retain_graph) has its own structure.
            keys = tuple((*key[:-1], min(_times(key) + 1, MOST_REPEATS)) for key in before.cache.get("keys", ()))
        else:
            keys = (() if fine is None else (("fine", fine, call.reduces, 0),)) + (
                () if coarse is None else (("coarse", coarse, call.reduces, 0),)
            )
        call.cache["keys"], call.cache["traced_from"] = keys, _traced_from(table[: call.first])
    return keys


def _traced_from(rows: IntArray) -> int:
    """Return autograd's number at the start of the traced steps that rows end with; 0 if all are traced."""
    untraced = np.flatnonzero(rows[:, TASK] <= OUTERMOST_TASK)[-1:]
    numbers = rows[untraced[0] + 1 :, SEQ0] if len(untraced) else rows[:0, SEQ0]
    return int(numbers.min()) if len(numbers) else 0


def is_repeat(keys: Sequence[object]) -> bool:
    """Return whether a call, by its structures, is not the first one through its forward pass."""
    return any(isinstance(key, tuple) and _times(key) for key in keys)


def is_partial(keys: Sequence[object]) -> bool:
    """Return whether the forward pass before a call was not, or only partly, recorded."""
    return any(isinstance(key, tuple) and key[0] == PARTIAL for key in keys)


def _times(key: StructureKey) -> int:
    times = key[-1]
    return times if isinstance(times, int) else 0


def forward_structure(rows: IntArray) -> tuple[bytes | None, tuple[OutermostRow, ...] | None]:
    """Return the structure of the forward calls before a backward call: a digest of all, and the outermost ones.

    Each call has its key, the number of autograd sequence numbers assigned during it, and its task, which has the
    signature of the modules inside if these were not traced. Calls that made no autograd node (evaluations) do not
    count. None without such calls.
    """
    if len(rows) <= FEW_ROWS and not (rows[:, TASK] == FORWARD_TASK).any():
        outer = tuple((row[KEY], row[SEQ1] - row[SEQ0], row[TASK]) for row in rows.tolist() if _grown(row))
        return None, outer or None
    grown = rows[(rows[:, SEQ1] > rows[:, SEQ0]) & (rows[:, KEY] > 0)]
    traced, light = grown[grown[:, TASK] == FORWARD_TASK], grown[grown[:, TASK] <= OUTERMOST_TASK]
    top = np.concatenate((traced[top_level(traced[:, START], traced[:, END])], light))
    size, task = top[:, SEQ1] - top[:, SEQ0], np.minimum(top[:, TASK], OUTERMOST_TASK)
    fine = _digest(traced[:, KEY], traced[:, SEQ1] - traced[:, SEQ0]) if len(traced) else None
    return fine, tuple(zip(top[:, KEY].tolist(), size.tolist(), task.tolist(), strict=True)) or None


def _grown(row: list[int]) -> bool:
    return row[SEQ1] > row[SEQ0] and row[KEY] > 0 and row[TASK] <= OUTERMOST_TASK


def _digest(*columns: IntArray) -> bytes:
    digest = hashlib.blake2b(digest_size=12)
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.digest()


MOST_SIGNATURES = 4_096
NOTHING_COUNTED, UNKNOWN = 0, 1  # numbers of signatures
BACKWARD = -1  # among ids of modules: a backward call
NODE_COUNT_BASE = -2  # among ids of modules: a graph without nodes; less the number of nodes for others
MOST_SIZED = 3 * MOST_SIGNATURES // 4  # beyond, graph sizes are left out: calls are more important


class PossibleStepEnd(NamedTuple):
    """The end of an optimizer's step, and what had been called since the end of the loop's step before."""

    end_ns: int
    called: int  # number of ids in `FastPath.called`
    nodes: int  # of autograd, made outside backward calls


NO_STEP_END = PossibleStepEnd(0, 0, 0)


@dataclass(frozen=True, slots=True)
class CallSignature:
    """Numbers of calls of modules, by key; `over` are the counted modules, calls of others are unknown.

    Of a step that ended before its time, `part` has the keys in the order of the calls. `nodes` is the size of a
    step's graph, without what was made in backward calls; None: not known. `opens` is what was called first.
    """

    counts: Mapping[int, int] = field(default_factory=dict)
    over: frozenset[int] = frozenset()
    part: tuple[int, ...] = ()
    nodes: int | None = None
    opens: int | None = None

    def matches(self, counts: Mapping[int, int]) -> bool:
        """Return whether the counted modules ran equally often in a traced call or step."""
        return all(counts.get(key, 0) == self.counts.get(key, 0) for key in self.over)


class SignatureTable:
    """Assigns numbers to signatures; equal numbers mean equal counts.

    Args:
        key_of: Key of a module by its id.
    """

    def __init__(self, key_of: Callable[[int], int | None]) -> None:
        self._key_of = key_of
        self.counted: set[int] = set()  # ids
        self.over: frozenset[int] = frozenset()  # their keys, and those of scopes
        self.scopes: frozenset[int] = frozenset()  # keys of the user's scopes, which are always counted
        self.of: list[CallSignature] = [CallSignature(), CallSignature()]
        self.by_ids: dict[tuple[int, ...], int] = {(): NOTHING_COUNTED}
        self._numbers: dict[tuple[object, ...], int] = {}

    def count(self, modules: Mapping[int, int]) -> None:
        """Count these modules, and no others, from the next call on: key by id."""
        self.counted.clear()
        self.counted.update(modules)
        self.over = self.scopes.union(modules.values())
        self.forget()

    def count_scope(self, key: int) -> None:
        """Count a scope of the user in later steps."""
        self.scopes |= {key}
        self.over |= self.scopes
        self.forget()

    def forget(self) -> None:
        """Drop cached numbers: an id may be reused by another module."""
        self.by_ids.clear()
        if not self.over:
            self.by_ids[()] = NOTHING_COUNTED

    def number(self, ids: Sequence[int]) -> int:
        """Return the number of the signature of modules called one after the other, by id."""
        signature_number = self.by_ids.get(tuple(ids))
        if signature_number is not None:
            return signature_number
        number = self._new(tuple(ids))
        if number != UNKNOWN and len(self.by_ids) < MOST_SIGNATURES:
            self.by_ids[tuple(ids)] = number
        return number

    def number_of_part(self, ids: Sequence[int]) -> int:
        """Return the number of the signature of an interrupted step, by ids in order of the calls."""
        return self._new(tuple(ids), is_part=True)

    def _new(self, ids: tuple[int, ...], *, is_part: bool = False) -> int:
        nodes = NODE_COUNT_BASE - ids[-1] if ids and ids[-1] <= NODE_COUNT_BASE and len(self.of) < MOST_SIZED else None
        ids = tuple(each for each in ids if each > NODE_COUNT_BASE)
        keys = [BACKWARD_KEY if each == BACKWARD else self._key_of(each) for each in ids]
        known_keys = tuple(key for key in keys if key is not None)
        if len(self.of) >= MOST_SIGNATURES or len(known_keys) < len(keys):
            return UNKNOWN
        counts = Counter(known_keys)
        over, part = self.over.union(counts), known_keys if is_part else ()
        opens = next((key for key in known_keys if key > FIRST_SCOPE_KEY), None)
        content = frozenset(counts.items()), over, part, nodes, opens
        number = self._numbers.get(content)
        if number is None:
            number = self._numbers[content] = len(self.of)
            self.of.append(CallSignature(dict(counts), over, part, nodes, opens))
        return number


def nearest_called(parent: Mapping[int, int], called: Collection[int]) -> dict[int, int]:
    """Return for each called module its nearest enclosing called module, if there is one."""
    enclosing_key = {}
    for key in called:
        above = parent.get(key)
        while above is not None and above not in called:
            above = parent.get(above)
        if above is not None:
            enclosing_key[key] = above
    return enclosing_key


class CallPattern:
    """Calls of modules per call of the enclosing module, over traced calls."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}  # key -> first calls, and calls of the enclosing module
        self.varying: set[int] = set()

    def add(self, counts: Mapping[int, int], around: Mapping[int, int]) -> None:
        """Add a traced call.

        Args:
            counts: Calls by key.
            around: The nearest enclosing called module of a module, by key.
        """
        for key, outer in around.items():
            parents = counts.get(outer, 0)
            if not parents:
                continue
            calls, before = self._seen.setdefault(key, (counts.get(key, 0), parents))
            if counts.get(key, 0) * before != calls * parents:
                self.varying.add(key)


def rows_table(rows: Sequence[Row]) -> IntArray:
    """Return rows of a log as a table."""
    return np.fromiter(chain.from_iterable(rows), np.int64, 6 * len(rows)).reshape(-1, 6)
