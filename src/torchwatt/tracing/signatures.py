"""Count submodule calls in untraced calls and steps, and number the distinct counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import top_level
from torchwatt.tracing.rows import BACKWARD_KEY, END, FORWARD_TASK, KEY, START, TASK

MOST_SIGNATURES = 4_096
NOTHING_COUNTED, UNKNOWN = 0, 1  # numbers of signatures
BACKWARD = -1  # among ids of modules: a backward call
NO_NODES = -2  # among ids of modules: a graph without nodes; less the number of nodes for others
SIZED = 3 * MOST_SIGNATURES // 4  # beyond, graph sizes are left out: calls are more important


@dataclass(frozen=True, slots=True)
class Signature:
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


class Signatures:
    """Assigns numbers to signatures; equal numbers mean equal counts.

    Args:
        key_of: Key of a module by its id.
    """

    def __init__(self, key_of: Callable[[int], int | None]) -> None:
        self._key_of = key_of
        self.counted: set[int] = set()  # ids
        self.over: frozenset[int] = frozenset()  # their keys
        self.of: list[Signature] = [Signature(), Signature()]
        self.by_ids: dict[tuple[int, ...], int] = {(): NOTHING_COUNTED}
        self._numbers: dict[tuple[object, ...], int] = {}

    def count(self, modules: Mapping[int, int]) -> None:
        """Count these modules, and no others, from the next call on: key by id."""
        self.counted.clear()
        self.counted.update(modules)
        self.over = frozenset(modules.values())
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
        nodes = NO_NODES - ids[-1] if ids and ids[-1] <= NO_NODES and len(self.of) < SIZED else None
        ids = tuple(each for each in ids if each > NO_NODES)
        keys = [BACKWARD_KEY if each == BACKWARD else self._key_of(each) for each in ids]
        known_keys = tuple(key for key in keys if key is not None)
        if len(self.of) >= MOST_SIGNATURES or len(known_keys) < len(keys):
            return UNKNOWN
        counts = Counter(known_keys)
        over, part, opens = (
            self.over.union(counts),
            known_keys if is_part else (),
            known_keys[0] if known_keys else None,
        )
        content = frozenset(counts.items()), over, part, nodes, opens
        number = self._numbers.get(content)
        if number is None:
            number = self._numbers[content] = len(self.of)
            self.of.append(Signature(dict(counts), over, part, nodes, opens))
        return number


@dataclass(frozen=True, slots=True)
class TracedCall:
    """An outermost call whose module calls were all logged: its row, and the calls of each module in it."""

    row: int
    first_row: int  # first row inside; inner rows end before the call's own
    counts: Mapping[int, int]


def traced_calls(table: IntArray) -> list[TracedCall]:
    """Return the outermost calls of traced steps.

    Args:
        table: Rows of a log, in order of their ends: a call follows all calls that it encloses.
    """
    own = np.flatnonzero((table[:, TASK] == FORWARD_TASK) & (table[:, KEY] > 0))
    top = own[top_level(table[own, START], table[own, END])]
    begin_rows = np.searchsorted(table[own, END], table[top, START], side="right") if len(own) else top
    calls = []
    for row, begin in zip(top.tolist(), begin_rows.tolist(), strict=True):
        end = int(np.searchsorted(own, row))
        inner_rows = own[begin : end + 1]
        keys, number = np.unique(table[inner_rows, KEY], return_counts=True)
        calls.append(TracedCall(row, int(own[begin]), dict(zip(keys.tolist(), number.tolist(), strict=True))))
    return calls


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


def affordable(
    candidates: Sequence[Collection[int]],
    kind_of: Callable[[int], type | None],
    calls: Mapping[type, float],
    most_calls: float,
) -> set[int]:
    """Return the modules that can be counted: each call of any instance of a patched class passes its wrapper.

    Args:
        candidates: Keys, the most important ones first.
        kind_of: Class of a module; None if it was deleted.
        calls: Calls per step, by class.
        most_calls: Maximum number of calls per step that may pass a wrapper.
    """
    chosen: set[type] = set()
    chosen_keys: set[int] = set()
    for keys in candidates:
        kinds = {key: kind for key in keys if (kind := kind_of(key)) is not None}
        for kind in sorted(set(kinds.values()) - chosen, key=lambda kind: calls.get(kind, 0)):
            if calls.get(kind, 0) <= most_calls:
                most_calls -= calls.get(kind, 0)
                chosen.add(kind)
        chosen_keys |= {key for key, kind in kinds.items() if kind in chosen}
    return chosen_keys
