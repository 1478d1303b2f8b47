"""Templates made of traced calls, and their stretching over untraced calls. Pure."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.energy_curve import interpolate
from torchwatt.core.intervals import self_times, top_level
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.log_rows import (
    COMMUNICATION_KEY,
    END,
    FORWARD_TASK,
    KEY,
    START,
    TASK,
    UNCOUNTED_COMMUNICATION_KEY,
)

T = TypeVar("T")

# One window has no spread; an assumed default.
ASSUMED_REL_SD = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class CallTemplate:
    """Spans within a call, as fractions of its net time (without recorded spans inside it)."""

    first: FloatArray  # start fractions in [0, 1], in order, outer before inner
    last: FloatArray
    owner: IntArray  # a key of the registry, or a slot
    calls: IntArray

    def shares(self) -> dict[int, float]:
        """Return the share of net time of each owner, children excluded."""
        total: dict[int, float] = defaultdict(float)
        for owner, own in zip(self.owner, self_times(list(self.first), list(self.last)), strict=True):
            total[int(owner)] += own
        return dict(total)


@dataclass(frozen=True, slots=True, eq=False)
class TimedCall:
    """One call on the clock: its interval and the outermost recorded spans inside it, sorted, disjoint."""

    start_ns: int
    end_ns: int
    inner: tuple[tuple[int, int], ...] = ()

    @property
    def net_ns(self) -> int:
        """Duration without the recorded spans inside, in ns."""
        return self.end_ns - self.start_ns - sum(end - start for start, end in self.inner)

    def to_net(self, t_ns: IntArray) -> IntArray:
        """Map clock times to net time since the start; times inside a recorded span map to its start."""
        net = np.clip(t_ns, self.start_ns, self.end_ns) - self.start_ns
        for start, end in self.inner:
            net -= np.clip(t_ns - start, 0, end - start)
        return net

    def from_net(self, net_ns: IntArray, *, late: bool) -> IntArray:
        """Map net time back to the clock; at a recorded span: `late` after it, else before it."""
        clock = net_ns + self.start_ns
        for start, end in self.inner:
            clock = clock + np.where(clock >= start if late else clock > start, end - start, 0)
        return clock


def template_of(call: TimedCall, pieces: Sequence[tuple[int, int, int, int]] | IntArray) -> CallTemplate | None:
    """Return the template of a traced call and its sorted pieces (start_ns, end_ns, owner, calls); None if empty."""
    net = call.net_ns
    table = np.asarray(pieces, dtype=np.int64)
    if net <= 0 or not len(table):
        return None
    return CallTemplate(call.to_net(table[:, 0]) / net, call.to_net(table[:, 1]) / net, table[:, 2], table[:, 3])


def stretch_template(template: CallTemplate, call: TimedCall) -> tuple[IntArray, IntArray]:
    """Lay a template over a call: linear in net time, so order and total are kept; starts and ends in ns."""
    net = call.net_ns
    starts, ends = (np.floor(f * net + 0.5).astype(np.int64) for f in (template.first, template.last))
    if not call.inner:
        return starts + call.start_ns, ends + call.start_ns
    start, end = call.from_net(starts, late=True), call.from_net(ends, late=False)
    return np.minimum(start, end), end


def stretch_templates(template: CallTemplate, start_ns: IntArray, end_ns: IntArray) -> tuple[IntArray, IntArray]:
    """Lay a template over many calls without recorded spans inside; one row per call."""
    net = (end_ns - start_ns)[:, None]
    return (
        np.floor(template.first[None, :] * net + 0.5).astype(np.int64) + start_ns[:, None],
        np.floor(template.last[None, :] * net + 0.5).astype(np.int64) + start_ns[:, None],
    )


class TemplateCatalogue(Generic[T]):
    """Templates, or what they are made from, by structure and time."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, list[tuple[int, T]]] = defaultdict(list)

    def add(self, keys: Sequence[Hashable], t_ns: int, template: T) -> None:
        """Add a template under its structures and under "any"."""
        for key in (*keys, None):
            bisect.insort(self._by_key[key], (t_ns, template), key=lambda entry: entry[0])

    def candidates(
        self, keys: Sequence[Hashable], accept: Callable[[T], bool] = lambda _: True
    ) -> tuple[list[tuple[int, T]], bool]:
        """Return the templates, by time, of the first structure that has any, and whether one matched.

        Args:
            keys: Structures, the best first; after them, templates of any structure.
            accept: Whether a template is suitable.
        """
        for key in (*keys, None):
            entries = [entry for entry in self._by_key.get(key, ()) if accept(entry[1])]
            if entries:
                return entries, key is not None
        return [], False


def neighbours_in_time(entries: Sequence[tuple[int, T]], t_ns: int, most_entries: int) -> list[T]:
    """Return at most `most_entries` templates before and after a time, from entries sorted by time."""
    i = bisect.bisect(entries, t_ns, key=lambda entry: entry[0])
    return [template for _, template in entries[max(i - most_entries, 0) : i + most_entries]]


def relative_sd(groups: Sequence[Sequence[Mapping[int, float]]]) -> dict[int, float]:
    """Return the relative SD of each slot's share between windows, pooled over structures.

    Args:
        groups: For each structure its windows, each a map of slot to share. A slot that a window of the
            same structure lacks has share 0 there.

    Returns:
        By slot; `ASSUMED_REL_SD` where no structure has two windows.
    """
    squares: dict[int, float] = defaultdict(float)
    freedom: dict[int, int] = defaultdict(int)
    values: dict[int, list[float]] = defaultdict(list)
    for windows in groups:
        for slot in {slot for window in windows for slot in window}:
            shares = [window.get(slot, 0.0) for window in windows]
            mean = math.fsum(shares) / len(shares)
            squares[slot] += math.fsum((share - mean) ** 2 for share in shares)
            freedom[slot] += len(shares) - 1
            values[slot] += shares
    return {
        slot: math.sqrt(squares[slot] / freedom[slot]) / mean if freedom[slot] and mean > 0 else ASSUMED_REL_SD
        for slot, shares in values.items()
        for mean in (math.fsum(shares) / len(shares),)
    }


@dataclass(frozen=True, slots=True, eq=False)
class NetClock:
    """Maps clock times within a call or step to net time since its start: linear between the given instants."""

    t_ns: IntArray
    net_ns: FloatArray

    def at(self, t_ns: IntArray) -> FloatArray:
        """Return net times; an instant before the start is 0."""
        return interpolate(t_ns, self.t_ns, self.net_ns)

    @property
    def total_ns(self) -> float:
        """Return the net length of the call or step."""
        return float(self.net_ns[-1])


def net_clock(frame: tuple[int, int], start_ns: IntArray, end_ns: IntArray, cost_ns: float) -> NetClock:
    """Take the cost of logging each span out of the gaps beside it.

    A wrapper works just before its span begins and just after it ends: half of the cost is taken from each side, at
    most the gap itself.

    Args:
        frame: Start and end of the call or step.
        start_ns: Starts of the logged spans inside the frame, in any order.
        end_ns: Their ends.
        cost_ns: Of logging one span.
    """
    n = len(start_ns)
    t_ns = np.concatenate(([frame[0]], start_ns, end_ns, [frame[1]])).astype(np.int64)
    before = np.concatenate(([0.0], np.full(n, cost_ns / 2), np.zeros(n + 1)))
    after = np.concatenate((np.zeros(n + 1), np.full(n, cost_ns / 2), [0.0]))
    order = np.argsort(t_ns, kind="stable")
    t_ns, before, after = t_ns[order], before[order], after[order]
    gaps = np.diff(t_ns).astype(np.float64)
    taken = np.minimum(gaps, before[1:] + after[:-1])
    net_ns = np.concatenate(([0.0], np.cumsum(gaps - taken)))
    latest = np.append(np.flatnonzero(np.diff(t_ns)), len(t_ns) - 1)  # of coinciding instants the last
    return NetClock(t_ns[latest], net_ns[latest])


FINEST_RATIO = 0.01  # relative difference in length below which calls get the same template


class ElasticTemplate:
    """A template, and how much of it is communication up to each of its bounds.

    Args:
        template: Of a traced call.
        net_ns: Length of that call without the recorded spans inside it.
    """

    def __init__(self, template: CallTemplate, net_ns: int) -> None:
        self.plain = template
        self.net_ns = net_ns
        self._fitted: dict[int, CallTemplate] = {}
        mine = is_communication(template.owner)
        starts, ends = _union(template.first[mine], template.last[mine])
        bounds, place = np.unique(np.concatenate((template.first, template.last)), return_inverse=True)
        self._first, self._last = place[: len(template.first)], place[len(template.first) :]
        self._talk_before = _covered_ns(starts, ends, bounds)
        self._work_before = bounds - self._talk_before
        self._talk = float((ends - starts).sum())

    @property
    def is_rigid(self) -> bool:
        """Whether the template is without communication, so that it stretches evenly."""
        return self._talk <= 0

    def fitted(self, net_ns: float) -> CallTemplate:
        """Return the template for a call of another net length."""
        if self.is_rigid or net_ns <= 0:
            return self.plain
        notch = round(math.log(net_ns / self.net_ns) / FINEST_RATIO)
        if notch not in self._fitted:
            self._fitted[notch] = self._made(math.exp(notch * FINEST_RATIO))
        return self._fitted[notch]

    def _made(self, ratio: float) -> CallTemplate:
        work = 1.0 - self._talk
        slope = min(1.0 / ratio, 1.0 / work) if work > 0 else 0.0  # of work, in fractions of the call's own length
        talk_slope = max(1.0 - slope * work, 0.0) / self._talk

        moved = slope * self._work_before + talk_slope * self._talk_before
        moved = np.minimum(np.maximum.accumulate(moved), 1.0)  # rounding must not reorder bounds
        return replace(self.plain, first=moved[self._first], last=moved[self._last])


def is_communication(owner: IntArray) -> np.ndarray:
    """Return whether each owner is communication."""
    return np.isin(owner, (COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY))


def _union(starts: FloatArray, ends: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return intervals (sorted by start) without their overlaps."""
    reached = np.maximum.accumulate(ends) if len(ends) else ends
    before = np.concatenate(([0.0], reached[:-1])) if len(ends) else ends
    start = np.minimum(np.maximum(starts, before), reached)
    return start, reached


def _covered_ns(starts: FloatArray, ends: FloatArray, bounds: FloatArray) -> FloatArray:
    """Return how much of each `[0, bound]` lies in intervals that are sorted and disjoint."""
    if not len(starts):
        return np.zeros(len(bounds))
    total = np.concatenate(([0.0], np.cumsum(ends - starts)))
    i = np.searchsorted(starts, bounds, side="right")
    partial = np.clip(bounds - starts[np.maximum(i - 1, 0)], 0.0, (ends - starts)[np.maximum(i - 1, 0)])
    covered: FloatArray = np.where(i > 0, total[np.maximum(i - 1, 0)] + partial, 0.0)
    return covered


INTERRUPTED_RATIO, SHORTEST_INTERRUPTION_NS = (
    2.0,
    200_000.0,
)  # factor, plus ns: an interrupted piece is longer than the shortest of its like


def even_interruptions(calls: Sequence[ElasticTemplate], away_ns: Sequence[int]) -> list[ElasticTemplate]:
    """Return the templates of calls of one structure without their interruptions.

    Args:
        calls: As recorded.
        away_ns: How long the thread of each did not run during the call, waits for other ranks included.
    """
    templates = list(calls)
    same_pieces: dict[bytes, list[int]] = defaultdict(list)
    orders = [_order(call.plain) for call in calls]
    for i, (call, order) in enumerate(zip(calls, orders, strict=True)):
        same_pieces[call.plain.owner.tobytes() + order.tobytes()].append(i)
    for members in same_pieces.values():
        if len(members) > 1:
            order = orders[members[0]]
            pieces = np.stack([_pieces_ns(calls[i], order) for i in members])
            works = ~_in_communication(calls[members[0]].plain, order)
            least = pieces.min(axis=0)  # on a crowded machine most calls are interrupted in the same layer
            for i, own in zip(members, pieces, strict=True):
                evened = _even_out(own, least, works, away_ns[i])
                if evened is not own:
                    templates[i] = _with_pieces(calls[i], order, evened)
    return templates


def _order(template: CallTemplate) -> IntArray:
    """Return the order of a template's starts and ends; at equal times ends come first, inner before outer."""
    count = len(template.first)
    number = np.arange(count)
    bounds = np.concatenate((template.first, template.last))
    is_start = np.repeat([1, 0], count)
    return np.lexsort((np.concatenate((number, -number)), is_start, bounds))


def _pieces_ns(call: ElasticTemplate, order: IntArray) -> FloatArray:
    """Return the times between neighbouring bounds, from the call's start to its end."""
    bounds = np.concatenate((call.plain.first, call.plain.last))[order]
    return np.asarray(np.diff(bounds, prepend=0.0, append=1.0) * call.net_ns, dtype=np.float64)


def _in_communication(template: CallTemplate, order: IntArray) -> np.ndarray:
    talks = is_communication(template.owner).astype(np.int64)
    depth = np.cumsum(np.concatenate((talks, -talks))[order])
    return np.concatenate(([False], depth > 0))


def _even_out(own: FloatArray, least: FloatArray, works: np.ndarray, away_ns: float) -> FloatArray:
    surplus = np.where(works & (own > INTERRUPTED_RATIO * least + SHORTEST_INTERRUPTION_NS), own - least, 0.0)
    if not surplus.any() or away_ns <= 0:
        return own
    evened = own - surplus * min(away_ns / surplus.sum(), 1.0)
    return np.where(works, evened * (own[works].sum() / evened[works].sum()), own)


def _with_pieces(call: ElasticTemplate, order: IntArray, pieces_ns: FloatArray) -> ElasticTemplate:
    template = call.plain
    bounds = np.empty(len(order))
    bounds[order] = np.minimum(np.cumsum(pieces_ns[:-1]) / call.net_ns, 1.0)
    starts, ends = np.split(bounds, 2)
    return ElasticTemplate(CallTemplate(starts, ends, template.owner, template.calls), call.net_ns)


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


def reassign_pieces(template: CallTemplate, owner_of: Callable[[int], int | None]) -> CallTemplate:
    """Give each piece to another owner; None drops it. A changed owner's calls become 0, counted elsewhere."""
    owners = [owner_of(int(owner)) for owner in template.owner]
    is_kept = np.array([owner is not None for owner in owners], dtype=np.bool_)
    owner = np.array([owner for owner in owners if owner is not None], dtype=np.int64)
    calls = np.where(owner == template.owner[is_kept], template.calls[is_kept], 0)
    return CallTemplate(template.first[is_kept], template.last[is_kept], owner, calls)


def warp_template(template: CallTemplate, bounds: FloatArray, usual: FloatArray) -> CallTemplate:
    """Return a template whose instants `bounds` are moved to `usual`, and what lies between them in proportion."""
    starts = np.interp(template.first, bounds, usual)
    return replace(template, first=starts, last=np.maximum(np.interp(template.last, bounds, usual), starts))


def first_part(template: CallTemplate, begun: NDArray[np.bool_]) -> CallTemplate | None:
    """Return the part of a template before its first span that had not begun."""
    part = float(template.first[~begun].min(initial=1.0))
    if part <= 0 or not begun.any():
        return None
    starts, ends = template.first[begun] / part, np.minimum(template.last[begun] / part, 1.0)
    return CallTemplate(starts, ends, template.owner[begun], template.calls[begun])
