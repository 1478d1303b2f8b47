"""What a call consisted of that was not traced and is like none that was, from how often its parts ran. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from torchwatt.tracing.signatures import Signature
from torchwatt.tracing.template import Template

FEW_SAMPLES = 3
UNKNOWN_CALLS = -1  # in a template: how often is not known


@dataclass(frozen=True, slots=True)
class Sample:
    """A traced call or step: own time of each owner, when it worked on the mean, and how often modules ran."""

    total_ns: float
    time_ns: Mapping[int, float]
    middle: Mapping[int, float]  # as a fraction of the whole
    calls: Mapping[int, int]  # of each owner
    counts: Mapping[int, int]  # of modules, as far as they are known


@dataclass(frozen=True, slots=True)
class Tree:
    """How modules lie in one another, by key.

    Args:
        parent: The module around a module, where there is one that is called itself.
        alike: Modules of one class and size, at the same place in their blocks, share a name.
        names: As in the state_dict.
    """

    parent: Mapping[int, int]
    alike: Mapping[int, object]
    names: Mapping[int, str] = field(default_factory=dict)

    def enclosing(self, key: int, uncertain: Collection[int]) -> int:
        """Return the smallest module that surely ran where this one may have; 0: none inside the call itself."""
        at: int | None = key
        found = key
        while at is not None:
            above = self.parent.get(at)
            if at in uncertain:
                found = above or 0
            at = above
        return found

    def counterpart(self, key: int, of: int, within: int) -> int:
        """Return what in one module corresponds to a module in another one like it, by name; else the module itself."""
        name = self.names.get(within, "") + self.names.get(key, "").removeprefix(self.names.get(of, ""))
        return next((k for k in self.parent if self.names.get(k) == name), within)

    def anchor(self, key: int, counted: frozenset[int]) -> int | None:
        """Return the smallest module around a module, or itself, that was counted."""
        at: int | None = key
        while at is not None and at not in counted:
            at = self.parent.get(at)
        return at


def sample_of(template: Template, total_ns: float, counts: Mapping[int, int]) -> Sample:
    """Return what a template says of its call."""
    middle: dict[int, float] = defaultdict(float)
    weight: dict[int, float] = defaultdict(float)
    for owner, first, last in zip(template.owner.tolist(), template.first, template.last, strict=True):
        middle[owner] += float(first + last) / 2 * float(last - first)
        weight[owner] += float(last - first)
    shares = template.shares()
    times = {owner: share * total_ns for owner, share in shares.items()}
    calls = Counter[int]()
    for owner, n in zip(template.owner.tolist(), template.calls.tolist(), strict=True):
        calls[owner] += n
    middles = {owner: middle[owner] / weight[owner] if weight[owner] > 0 else 0.5 for owner in shares}
    return Sample(total_ns, times, middles, calls, counts)


class Composer:
    """Puts calls together from the time that each module usually takes a call.

    Args:
        samples: Traced calls.
        tree: How modules lie in one another.
        module_of: Key of the module that an owner stands for; None: no module.
        beside: Owner that stands for another module in the same phase, by an owner and the module's key.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tree: Tree,
        module_of: Callable[[int], int | None],
        beside: Callable[[int, int], int] = lambda _, key: key,
    ) -> None:
        self._samples = samples
        self._tree = tree
        self._module_of = module_of
        self._beside = beside
        self._made: dict[frozenset[int], _Rates] = {}

    def compose(self, ran: Signature, total_ns: float) -> Template | None:
        """Return a template for a call in which the counted modules ran as told; None where nothing is known.

        A module that was never traced gets what modules like it took, as a whole. If there are none like it, its time
        is left out: it is the enclosing one's.
        """
        if not self._samples:
            return None
        rates = self._made.get(ran.over)
        if rates is None:
            rates = self._made[ran.over] = _Rates(self._samples, self._tree, (self._module_of, self._beside), ran.over)
        return rates.template(ran, total_ns)


class _Rates:
    """Usual times of owners for each call of the counted module around them."""

    def __init__(
        self,
        samples: Sequence[Sample],
        tree: Tree,
        owners: tuple[Callable[[int], int | None], Callable[[int, int], int]],
        over: frozenset[int],
    ) -> None:
        self._tree, self._over = tree, over
        self._module_of, self._beside = module_of, _ = owners
        self._n = len(samples)
        self._anchors = Counter[int]()
        self._calls = Counter[int]()
        self._time: dict[int, float] = defaultdict(float)
        self._moment: dict[int, float] = defaultdict(float)
        for sample in samples:
            self._anchors.update({key: sample.counts.get(key, 0) for key in over})
            self._calls.update(sample.calls)
            for owner, time_ns in sample.time_ns.items():
                self._time[owner] += time_ns
                self._moment[owner] += time_ns * sample.middle[owner]
        # What no owner has: of the call itself.
        self._rest_ns = _usual([s.total_ns - math.fsum(s.time_ns.values()) for s in samples])
        self._by_anchor: dict[int | None, list[int]] = defaultdict(list)
        for owner in self._time:
            key = module_of(owner)
            anchor = None if key is None else tree.anchor(key, over)
            self._by_anchor[anchor].append(owner)
            calls = [1 if anchor is None else sample.counts.get(anchor, 0) for sample in samples]
            of = self._n if anchor is None else self._anchors[anchor]
            self._time[owner] = of * _usual(
                [sample.time_ns.get(owner, 0.0) / n for sample, n in zip(samples, calls, strict=True) if n]
            )

    def template(self, ran: Signature, total_ns: float) -> Template | None:
        weights = {owner: self._weight(owner, 1, self._n) for owner in self._by_anchor[None]}
        missing = False
        for key, count in ran.counts.items():
            if key in self._over and self._anchors[key]:
                weights |= {owner: self._weight(owner, count, self._anchors[key]) for owner in self._by_anchor[key]}
            elif key in self._over:
                like = self._like(key, count)
                missing |= not like
                weights |= like
        known_ns = math.fsum(ns for ns, _ in weights.values()) + max(self._rest_ns, 0.0)
        whole_ns = max(total_ns, known_ns) if missing else known_ns
        return self._laid(weights, whole_ns) if whole_ns > 0 and weights else None

    def _weight(self, owner: int, count: int, of: int) -> tuple[float, int]:
        """Return the time of an owner, and its calls, for so many calls of what it lies in."""
        return _scaled(self._time[owner], self._calls[owner], count, of)

    def _like(self, key: int, count: int) -> dict[int, tuple[float, int]]:
        """Give a module that was never traced what those like it took, with all inside, for so many calls."""
        name = self._tree.alike.get(key)
        twins = [k for k in self._over if self._anchors[k] and name is not None and self._tree.alike.get(k) == name]
        sums: dict[int, float] = defaultdict(float)
        for twin in twins:
            for owner in self._by_anchor[twin]:
                module = self._module_of(owner)
                own = self._beside(owner, self._tree.counterpart(twin if module is None else module, twin, key))
                sums[own] += self._time[owner]
        of = sum(self._anchors[k] for k in twins)
        # Its own calls were counted; of what is inside it is not known how often that runs.
        return {own: (ns * count / of, count if own == key else UNKNOWN_CALLS) for own, ns in sums.items()}

    def _laid(self, weights: Mapping[int, tuple[float, int]], whole_ns: float) -> Template:
        def middle(owner: int) -> float:
            return self._moment[owner] / self._time[owner] if self._time.get(owner) else 0.5

        order = sorted(weights, key=lambda owner: (middle(owner), owner))
        last = np.minimum(np.cumsum([weights[owner][0] for owner in order]) / whole_ns, 1.0)
        first = np.concatenate(([0.0], last[:-1]))
        calls = np.array([weights[owner][1] for owner in order], dtype=np.int64)
        return Template(first, last, np.array(order, dtype=np.int64), calls)


def _usual(times_ns: Sequence[float]) -> float:
    """Return what a call usually takes: another program's time in one of a few traced calls must not go to all."""
    if len(times_ns) < FEW_SAMPLES:
        return min(times_ns, default=0.0)
    return float(np.median(times_ns))


def _scaled(time_ns: float, calls: int, count: int, of: int) -> tuple[float, int]:
    """Return the time and the calls, if these are a whole number, for so many calls of what they lie in."""
    number, rest = divmod(calls * count, of)
    return time_ns * count / of, UNKNOWN_CALLS if rest else number
