"""Compose a template for an untraced call without a similar traced one, from the calls of its parts. Pure."""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import ROOT
from torchwatt.tracing.aggregated_spans import AggregatedSpans, SpanKinds
from torchwatt.tracing.call_template import CallTemplate
from torchwatt.tracing.log_rows import NO_CHANGES, STEP_KEY, CallSignature

FEW_SAMPLES = 3
UNKNOWN_CALLS = -1  # in a template: number of calls unknown


@dataclass(frozen=True, slots=True)
class CallSample:
    """A traced call or step: own time and mean position in time of each owner, and the calls of modules."""

    total_ns: float
    time_ns: Mapping[int, float]
    middle: Mapping[int, float]  # as a fraction of the call's length
    calls: Mapping[int, int]  # of each owner
    counts: Mapping[int, int]  # of modules, where known


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """The nesting of modules, by key.

    Args:
        parent: The enclosing module of a module, among modules that are called themselves.
        archetypes: A value by module; modules of one class and size at the same place in their blocks share it.
        names: As in the state_dict.
    """

    parent: Mapping[int, int]
    archetypes: Mapping[int, object]
    names: Mapping[int, str] = field(default_factory=dict)

    def enclosing(self, key: int, uncertain: Collection[int]) -> int:
        """Return the smallest enclosing module that certainly ran; 0: none inside the call itself."""
        at: int | None = key
        ancestor = key
        while at is not None:
            above = self.parent.get(at)
            if at in uncertain:
                ancestor = above or 0
            at = above
        return ancestor

    def counterpart(self, key: int, of: int, within: int) -> int:
        """Return the module in `within` that corresponds by name to `key` in `of`, else `within`."""
        if key == of:
            return within
        place = self._name(key).removeprefix(self._name(of)).removeprefix(".")
        name = ".".join(part for part in (self._name(within), place) if part)
        return next((k for k in self.parent if self.names.get(k) == name and self._is_in(k, within)), within)

    def _name(self, key: int) -> str:
        name = self.names.get(key, "")
        return "" if name == ROOT else name

    def _is_in(self, key: int, outer: int) -> bool:
        at: int | None = key
        while at is not None and at != outer:
            at = self.parent.get(at)
        return at == outer

    def holds(self, key: int) -> bool:
        """Return whether a module contains modules that are called themselves."""
        return key in self.parent.values()

    def anchor(self, key: int, counted: frozenset[int]) -> int | None:
        """Return the smallest counted module that is or encloses a module, else None."""
        at: int | None = key
        while at is not None and at not in counted:
            at = self.parent.get(at)
        return at


def sample_of(template: CallTemplate, total_ns: float, counts: Mapping[int, int]) -> CallSample:
    """Return the sample of a template's call."""
    middle: dict[int, float] = defaultdict(float)
    weight: dict[int, float] = defaultdict(float)
    for owner, start, end in zip(template.owner.tolist(), template.first, template.last, strict=True):
        middle[owner] += float(start + end) / 2 * float(end - start)
        weight[owner] += float(end - start)
    shares = template.shares()
    times = {owner: share * total_ns for owner, share in shares.items()}
    middles = {owner: middle[owner] / weight[owner] if weight[owner] > 0 else 0.5 for owner in shares}
    return CallSample(total_ns, times, middles, calls_of(template), counts)


def calls_of(template: CallTemplate) -> dict[int, int]:
    """Return the number of calls of each owner of a template; below zero: unknown."""
    calls: dict[int, int] = {}
    for owner, n in zip(template.owner.tolist(), template.calls.tolist(), strict=True):
        total = calls.setdefault(owner, 0)
        calls[owner] = UNKNOWN_CALLS if min(total, n) < 0 else total + n
    return calls


def differing_owners(calls: Sequence[Mapping[int, int]]) -> set[int]:
    """Return the owners whose numbers of calls differ between some calls or steps."""
    owners = {owner for each in calls for owner in each}
    return {owner for owner in owners if len({each.get(owner, 0) for each in calls}) > 1}


def mark_unknown(template: CallTemplate, is_untold: Callable[[int], bool]) -> CallTemplate:
    """Mark the number of calls of some owners as unknown."""
    which = np.array([is_untold(owner) for owner in template.owner.tolist()], dtype=np.bool_)
    return replace(template, calls=np.where(which, UNKNOWN_CALLS, template.calls)) if which.any() else template


@dataclass(frozen=True, slots=True)
class ProportionalOwners:
    """Owners whose calls follow from the counted modules only if the calls outside are in proportion.

    A backward pass has as many calls of a module as the forward pass, unless no backward call followed one of these: an
    extra call of the model with an equal number of backward calls may be an evaluation.

    Args:
        owners: Whether an owner is one of them.
        outside: Outermost modules, optimizers, and the key of backward calls.
        straddles: Whether a backward pass may follow a forward pass of the step before.
        of_one_call: Calls outside are those that led to one backward call: twice as many led to another one.
    """

    owners: Callable[[int], bool] = lambda _: False
    outside: frozenset[int] = frozenset()
    straddles: bool = False
    of_one_call: bool = False

    def pattern(self, counts: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
        """Return the calls outside, in lowest terms where they are those of several backward calls."""
        outside_counts = sorted((key, n) for key, n in counts.items() if n and key in self.outside)
        unit = math.gcd(*(n for _, n in outside_counts)) if outside_counts and not self.of_one_call else 1
        return tuple((key, n // unit) for key, n in outside_counts)


class TemplateComposer:
    """Compose templates of calls from the usual time of each module per call.

    Args:
        samples: Traced calls.
        tree: The nesting of modules.
        module_of: Key of the module that an owner stands for; None: no module.
        counterpart_slot: Owner of another module in the same phase, by an owner and that module's key.
        led: Owners whose calls follow from those of others in some calls only.
        round_key: Time without an owner, and that of owners without a module, is in proportion to the calls of this
            key, where there are any; None: there is as much in every call.
    """

    def __init__(
        self,
        samples: Sequence[CallSample],
        tree: ModuleTree,
        module_of: Callable[[int], int | None],
        counterpart_slot: Callable[[int, int], int] = lambda _, key: key,
        led: ProportionalOwners | None = None,
        *,
        round_key: int | None = None,
    ) -> None:
        self._samples = samples
        self._tree = tree
        self._module_of = module_of
        self._slot_of = counterpart_slot
        self._led = led or ProportionalOwners()
        self._round_key = round_key
        self._made: dict[frozenset[int], _CallTimes] = {}

    def compose(self, ran: CallSignature, total_ns: float) -> CallTemplate | None:
        """Return a template for a call with a signature; None without any traced call.

        A module that was never traced gets the total time of similar modules. Without similar ones its time is left to
        the enclosing module.
        """
        return self._rates(ran.over).template(ran, total_ns) if self._samples else None

    def unlike(self, ran: CallSignature) -> set[int]:
        """Return the counted modules that ran but are in no traced call, and have no similar module there."""
        return self._rates(ran.over).unlike(ran)

    def _rates(self, over: frozenset[int]) -> _CallTimes:
        if over not in self._made:
            owners = self._module_of, self._slot_of, self._led
            self._made[over] = _CallTimes(self._samples, self._tree, owners, over, self._round_key)
        return self._made[over]


class _CallTimes:
    """Usual times of owners per call of the counted module around them."""

    def __init__(
        self,
        samples: Sequence[CallSample],
        tree: ModuleTree,
        owners: tuple[Callable[[int], int | None], Callable[[int, int], int], ProportionalOwners],
        over: frozenset[int],
        round_key: int | None,
    ) -> None:
        self._tree, self._over, self._round_key = tree, over, round_key
        self._module_of, self._slot_of, self._led = module_of, _, _ = owners
        self._samples = samples
        self._anchors = Counter[int]()
        self._calls: dict[tuple[int, tuple[tuple[int, int], ...] | None], tuple[int, int] | None] = {}
        self._time: dict[int, float] = defaultdict(float)
        self._moment: dict[int, float] = defaultdict(float)
        self._samples_by_pattern: dict[tuple[tuple[int, int], ...], list[CallSample]] = defaultdict(list)
        for sample in samples:
            self._samples_by_pattern[self._led.pattern(sample.counts)].append(sample)
            self._anchors.update({key: sample.counts.get(key, 0) for key in over})
            for owner, time_ns in sample.time_ns.items():
                self._time[owner] += time_ns
                self._moment[owner] += time_ns * sample.middle[owner]
        # Time without an owner: of the call itself.
        rests = [(s.total_ns - math.fsum(s.time_ns.values())) / self._calls_of(None, s.counts) for s in samples]
        self._rest_ns = _usual_ns(rests)
        self._by_anchor: dict[int | None, list[int]] = defaultdict(list)
        self._anchor: dict[int, int | None] = {}
        for owner in self._time:
            key = module_of(owner)
            anchor = None if key is None else tree.anchor(key, over)
            self._by_anchor[anchor].append(owner)
            self._anchor[owner] = anchor
            anchored = [(sample, self._calls_of(anchor, sample.counts)) for sample in samples]
            times = [sample.time_ns.get(owner, 0.0) / n for sample, n in anchored if n]
            # Per call of the anchor.
            self._moment[owner] /= self._time[owner] if self._time[owner] > 0 else 1.0
            self._time[owner] = _usual_ns(times)
        self._led_owners = {owner for owner in self._anchor if self._led.owners(owner)}

    def _calls_of(self, anchor: int | None, counts: Mapping[int, int]) -> int:
        """Return the calls of an anchor; without one the number of rounds, at least 1."""
        if anchor is not None:
            return counts.get(anchor, 0)
        return max(counts.get(self._round_key, 0), 1) if self._round_key is not None else 1

    def template(self, ran: CallSignature, total_ns: float) -> CallTemplate | None:
        """Return the template of a call, from the owners with a usual time."""
        pattern = self._led.pattern(ran.counts)
        rounds = self._calls_of(None, ran.counts)
        weights = {owner: self._weight(owner, rounds, pattern) for owner in self._by_anchor[None]}
        for key, count in ran.counts.items():
            if key in self._over and self._anchors[key]:
                weights |= {owner: self._weight(owner, count, pattern) for owner in self._by_anchor[key]}
            elif key in self._over:
                weights |= self._like(key, count)
        weights |= {owner: (0.0, UNKNOWN_CALLS) for owner in self._open(pattern) if owner not in weights}
        known_ns = math.fsum(ns for ns, _ in weights.values()) + max(self._rest_ns, 0.0) * rounds
        whole_ns = max(total_ns, known_ns) if self.unlike(ran) else known_ns
        return self._laid(weights, whole_ns) if whole_ns > 0 and weights else None

    def _open(self, pattern: tuple[tuple[int, int], ...]) -> set[int]:
        """Return the led owners that calls of a model in an earlier step may have led to."""
        samples = self._samples_by_pattern.get(pattern, [])
        if self._led.straddles and not samples:
            return self._led_owners
        called = frozenset(key for key, _ in pattern)
        keys = {owner: self._module_of(owner) for owner in self._led_owners}
        earlier = {o for o, key in keys.items() if key is not None and self._tree.anchor(key, called) is None}
        return {owner for owner in earlier if not samples or any(sample.calls.get(owner) for sample in samples)}

    def unlike(self, ran: CallSignature) -> set[int]:
        """Return the counted modules that ran but are in no sample, and have no similar module there."""
        counted = (key for key, count in ran.counts.items() if count and key in self._over)
        return {key for key in counted if not self._anchors[key] and not self._like(key, 1)}

    def _weight(self, owner: int, count: int, pattern: tuple[tuple[int, int], ...]) -> tuple[float, int]:
        """Return the time of an owner in ns, and its calls, for `count` calls of its anchor."""
        which = owner, pattern if owner in self._led_owners else None
        if which not in self._calls:
            self._calls[which] = self._rate(*which)
        rate = self._calls[which]
        calls, remainder = divmod(rate[0] * count, rate[1]) if rate is not None else (0, 1)
        return self._time[owner] * count, UNKNOWN_CALLS if remainder else calls

    def _rate(self, owner: int, pattern: tuple[tuple[int, int], ...] | None) -> tuple[int, int] | None:
        """Return (calls of an owner, calls of its anchor); None where samples disagree or none has the pattern."""
        anchor = self._anchor[owner]
        samples = self._samples if pattern is None else self._samples_by_pattern.get(pattern, [])
        rates = [(sample.calls.get(owner, 0), self._calls_of(anchor, sample.counts)) for sample in samples]
        calls, of = max(rates, key=lambda each: each[1]) if rates else (0, 0)
        same = all(n >= 0 and n * of == calls * times for n, times in rates)
        return (calls, of) if of and same else None

    def _like(self, key: int, count: int) -> dict[int, tuple[float, int]]:
        """Give a module that was never traced the time of similar ones, with all inside, for `count` calls."""
        archetype_of = self._tree.archetypes.get
        name = archetype_of(key)
        twins = [k for k in self._over if name is not None and archetype_of(k) == name and self._anchors[k]]
        sums: dict[int, float] = defaultdict(float)
        counted: set[int] = set()
        for twin in twins:
            for owner in self._by_anchor[twin]:
                module = self._module_of(owner)
                own = self._slot_of(owner, self._tree.counterpart(twin if module is None else module, twin, key))
                sums[own] += self._time[owner] * self._anchors[twin]
                if module == twin and not self._led.owners(owner):
                    counted.add(own)
        of = sum(self._anchors[k] for k in twins)
        # Its own calls were counted; the calls of modules inside it, or that follow from it, are unknown.
        return {own: (ns * count / of, count if own in counted else UNKNOWN_CALLS) for own, ns in sums.items()}

    def _laid(self, weights: Mapping[int, tuple[float, int]], whole_ns: float) -> CallTemplate:
        def middle(owner: int) -> float:
            return self._moment.get(owner, 0.5)

        order = sorted(weights, key=lambda owner: (middle(owner), owner))
        ends = np.minimum(np.cumsum([weights[owner][0] for owner in order]) / whole_ns, 1.0)
        starts = np.concatenate(([0.0], ends[:-1]))
        calls = np.array([weights[owner][1] for owner in order], dtype=np.int64)
        return CallTemplate(starts, ends, np.array(order, dtype=np.int64), calls)


def _usual_ns(times_ns: Sequence[float]) -> float:
    """Return the usual time of a call; the minimum of few, so that a disturbance does not affect all calls."""
    return min(times_ns, default=0.0) if len(times_ns) < FEW_SAMPLES else float(np.median(times_ns))


NO_STEPS: IntArray = np.zeros((0, 2), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ModuleSlots:
    """Modules of slots: key by slot; `slot_of` returns the slot of another module in the same phase.

    `in_stage` returns the slot in another stage, by slot, its own stage's number and the other; other slots unchanged.
    """

    keys: Mapping[int, int] = field(default_factory=dict)
    slot_of: Callable[[int, int], int] = lambda slot, _: slot
    is_backward: Callable[[int], bool] = lambda _: False
    modules: frozenset[int] = frozenset()  # those whose slots belong to one module only
    in_stage: Callable[[int, int, int], int] = lambda slot, _of, _to: slot


@dataclass(frozen=True, slots=True, eq=False)
class CalledModules:
    """Modules that ran in the outermost calls of a thread, by the calls' starts."""

    start_ns: Sequence[int]
    counts: Sequence[Mapping[int, int]]
    over: Sequence[frozenset[int] | None]  # modules that were counted; None: all were
    # Modules called outside any other, optimizers, and `BACKWARD_KEY` for a backward call: those are always counted.
    outermost: frozenset[int] = frozenset()
    led_ns: IntArray = field(default_factory=lambda: NO_STEPS)  # forward pass and backward call, starts; shape (n, 2)
    varying: frozenset[int] = frozenset()  # modules whose number of calls varies
    optimizers: frozenset[int] = frozenset()

    def within(self, start_ns: int, end_ns: int) -> tuple[Mapping[int, int], frozenset[int] | None]:
        """Return the calls between two instants, and the modules whose calls were counted; None: all."""
        total, over = Counter[int](), None
        for i in range(bisect.bisect_left(self.start_ns, start_ns), bisect.bisect_left(self.start_ns, end_ns)):
            total.update(self.counts[i])
            counted = self.over[i]
            over = counted if over is None else over if counted is None else over & counted
        return total, over

    def sequence(self, start_ns: int, end_ns: int) -> Iterator[tuple[int, Mapping[int, int]]]:
        """Yield the start of each call between two instants, and the modules that ran in it."""
        for i in range(bisect.bisect_left(self.start_ns, start_ns), bisect.bisect_left(self.start_ns, end_ns)):
            yield self.start_ns[i], self.counts[i]

    def straddles(self, start_ns: int, end_ns: int) -> bool:
        """Return whether a backward call between two instants follows a forward pass that began earlier."""
        within = (self.led_ns[:, 1] >= start_ns) & (self.led_ns[:, 1] < end_ns)
        return bool((self.led_ns[within, 0] < start_ns).any())


@dataclass(frozen=True, slots=True, eq=False)
class ModuleCalls:
    """The module calls of a thread, the nesting of modules, and the modules of slots."""

    ran: CalledModules = field(default_factory=lambda: CalledModules((), (), ()))
    tree: ModuleTree = field(default_factory=lambda: ModuleTree({}, {}))
    slots: ModuleSlots = field(default_factory=ModuleSlots)
    nodes: Mapping[int, int] = field(default_factory=dict)  # graph size by end of a step, sorted
    stages: IntArray = field(default_factory=lambda: NO_CHANGES)  # changes of the thread's stage, as in `stages_at`

    def nodes_of(self, steps: IntArray) -> list[int | None]:
        """Return the size of each step's graph; a step may last a little beyond its recorded end."""
        sizes, ends = list(self.nodes.values()), list(self.nodes)
        places = (np.searchsorted(np.array(ends, dtype=np.int64), steps[:, 1], side="right") - 1).tolist()
        begins = steps[:, 0].tolist()
        return [sizes[i] if i >= 0 and ends[i] > begin else None for i, begin in zip(places, begins, strict=True)]


def steps_among(records: AggregatedSpans, kinds: SpanKinds) -> IntArray:
    """Return the indices of records that stand for whole steps."""
    own = [i for i, kind in enumerate(kinds.of) if kind[0] == "row" and kind[1] == STEP_KEY]
    return np.flatnonzero(np.isin(records.kind, own))
