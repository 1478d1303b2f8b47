"""The same joules in five views: hottest, blocks, tree, type and stage; the rows of each view add up to the total."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import fsum
from typing import Literal, get_args

from torchwatt.core.ledger import Entry, Ledger, energy_per_tflop_j, sum_if_known
from torchwatt.core.report import Report
from torchwatt.core.terms import PHASES, RESERVED, Domain, Phase, Provenance, weakest_provenance
from torchwatt.core.trace import ModuleKind
from torchwatt.views.layer_sums import LayerSum, class_names, entries_by_stage, is_tied, module_kinds, sum_layers
from torchwatt.views.module_tree import TOP_CONTAINER, ModuleNode, build_layer_tree, find_containers, fold_tree

View = Literal["hottest", "blocks", "tree", "type", "stage"]
VIEWS: tuple[View, ...] = get_args(View)
FLAT_VIEWS: tuple[View, ...] = ("hottest", "blocks", "type")  # those with a row for modules
NO_STAGE_NAME = "(no stage)"


Interval = tuple[float, float]


class GroupIntervals:
    """Bounds the joules of groups of the entries of some ledgers, in repeats of the run.

    A report has no covariances, and none can be assumed: drift of the machine is common to all rows, the choice of
    traced steps moves some up and others down, and alike modules share one error. Two laws need none. Half widths of a
    group add up to at most their sum. And a group is its domain without the other rows, so its half width is at most
    the domain's own plus the sum of theirs. The narrower of the two is taken; a group of all rows has the domain's own
    interval, one row its own. Half widths of domains are added, as in the total.
    """

    def __init__(self, ledgers: Iterable[Ledger]) -> None:
        self._ledgers = {ledger.domain: ledger for ledger in ledgers}
        self._halves_j = {
            domain: sum_if_known(_half_j(entry) for entry in ledger.entries) for domain, ledger in self._ledgers.items()
        }

    def bound(self, entries: Iterable[Entry]) -> Interval | None:
        """Return the interval of a group of entries in J; None if one of them has none, or without entries."""
        by_domain: dict[Domain, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_domain[entry.domain].append(entry)
        bounds = [self._bound_domain(self._ledgers[domain], members) for domain, members in by_domain.items()]
        known = [interval for interval in bounds if interval is not None]
        if not bounds or len(known) < len(bounds):
            return None
        return fsum(lo for lo, _ in known), fsum(hi for _, hi in known)

    def _bound_domain(self, ledger: Ledger, members: Sequence[Entry]) -> Interval | None:
        lows, highs = ([getattr(entry, f"energy_self_{end}_j") for entry in members] for end in ("lo", "hi"))
        lo_j, hi_j = sum_if_known(lows), sum_if_known(highs)
        if lo_j is None or hi_j is None:
            return None
        all_j = self._halves_j[ledger.domain]
        if ledger.energy_lo_j is None or ledger.energy_hi_j is None or all_j is None:
            return lo_j, hi_j
        if len(members) == len(ledger.entries):
            return ledger.energy_lo_j, ledger.energy_hi_j
        if len(members) == 1:
            return lo_j, hi_j
        energy_j = fsum(entry.energy_self_j for entry in members)
        others_j = all_j - (hi_j - energy_j)
        by_others_j = ledger.energy_hi_j - ledger.energy_j + others_j
        return max(lo_j, energy_j - by_others_j), min(hi_j, energy_j + by_others_j)


def _half_j(entry: Entry) -> float | None:
    return None if entry.energy_self_hi_j is None else entry.energy_self_hi_j - entry.energy_self_j


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """One row of a view: the entries of one or more modules, or of a reserved name, over the counted domains.

    `lo_j` to `hi_j` is the 90 % interval between repeats of the run (see `GroupIntervals`), None if an entry has none.
    `each_lo_j` and `each_hi_j` are the least and the most joules of one module of the group; None for a single one.
    """

    name: str
    count: int  # modules; 0 for a reserved name
    entries: tuple[Entry, ...]
    share: float | None
    lo_j: float | None
    hi_j: float | None
    each_lo_j: float | None = None
    each_hi_j: float | None = None
    unclear: bool = False  # the interval of the difference from the row above includes 0
    depth: int = 0  # levels below the top, in the tree
    total_j: float | None = None  # in the tree: with the modules inside

    @property
    def energy_j(self) -> float:
        """Return joules of all entries."""
        return fsum(entry.energy_self_j for entry in self.entries)

    @property
    def phases(self) -> dict[Phase, float]:
        """Return joules by phase, for the phases with entries."""
        by_phase = {phase: [e.energy_self_j for e in self.entries if e.phase == phase] for phase in PHASES}
        return {phase: fsum(joules) for phase, joules in by_phase.items() if joules}

    @property
    def provenance(self) -> Provenance | None:
        """Return the weakest provenance of the entries; None without entries."""
        return weakest_provenance(*(entry.provenance for entry in self.entries)) if self.entries else None

    @property
    def energy_per_tflop_j(self) -> float | None:
        """Return the joules of 1e12 operations; None if those of a module of the group are unknown."""
        return energy_per_tflop_j(self.entries)

    @property
    def method(self) -> str:
        """Return the methods of the entries, joined by `+`."""
        return " + ".join(sorted({entry.method for entry in self.entries}))


def layer_groups(report: Report, by: View) -> tuple[LayerGroup, ...]:
    """Return the rows of a view, which add up to the total; most joules first, except for the tree.

    Args:
        report: The report to show.
        by: `hottest`: a row per module. `blocks`: alike modules of repeated blocks are one row, as in
            `h.*.mlp.fc1`. `tree`: a row per module with the modules inside it below. `type`: a row per kind of module.
            `stage`: a row per stage that the program named, idle time included.
    """
    if by == "stage":
        return stage_groups(report)
    return tree_groups(report) if by == "tree" else _flat_groups(report, sum_layers(report), by)


def flat_views(report: Report) -> dict[View, tuple[LayerGroup, ...]]:
    """Return the rows of every view but the tree, as `layer_groups` does."""
    layers = sum_layers(report)
    return {view: _flat_groups(report, layers, view) for view in FLAT_VIEWS}


def _flat_groups(report: Report, layers: Sequence[LayerSum], by: View) -> tuple[LayerGroup, ...]:
    if by == "hottest":
        return _make_groups(report, layers, lambda layer: layer.fqn)
    if by == "type":
        return _make_groups(report, layers, lambda layer: module_type(layer.class_name))
    folded = fold_names((layer.fqn for layer in layers), module_kinds(report))
    return _make_groups(report, layers, lambda layer: folded[layer.fqn])


def stage_groups(report: Report) -> tuple[LayerGroup, ...]:
    """Return a row per stage that the program named, most joules first, and one for the time without a stage."""
    maker = _GroupMaker(report)
    groups = []
    for name, entries in entries_by_stage(report).items():
        modules = {entry.fqn for entry in entries}.difference(RESERVED)
        groups.append(replace(maker.make(name or NO_STAGE_NAME, tuple(entries)), count=len(modules)))
    return mark_unclear(sorted(groups, key=lambda group: (-group.energy_j, group.name)))


def default_view(report: Report) -> View:
    """Return `blocks` if modules with modules inside repeat, or if folding at least halves the rows; else `hottest`."""
    names = {entry.fqn for ledger in report.counted for entry in ledger.entries}
    folded = fold_names(names, module_kinds(report))
    repeats = any(short.rpartition(".")[0] != name.rpartition(".")[0] for name, short in folded.items())
    return "blocks" if repeats or 2 * len(set(folded.values())) <= len(names) else "hottest"


def cut_groups(report: Report, groups: Sequence[LayerGroup], rows: int) -> tuple[LayerGroup, ...]:
    """Keep `rows` groups of modules, and all reserved ones; the others become one row, "N more", at the end.

    A group that would be the only one to be cut is kept.
    """
    modules = [group for group in groups if group.count]
    if len(modules) <= rows + 1:
        return tuple(groups)
    cut = set(map(id, modules[rows:]))
    remainder = [group for group in groups if id(group) in cut]
    entries = tuple(entry for group in remainder for entry in group.entries)
    more = _GroupMaker(report).make(f"{len(remainder)} more", entries)
    return (
        *(group for group in groups if id(group) not in cut),
        replace(more, count=sum(group.count for group in remainder)),
    )


class _GroupMaker:
    """Makes the groups of one report."""

    def __init__(self, report: Report) -> None:
        self._intervals, self._run_j = GroupIntervals(report.counted), report.energy_j or 0.0

    def make(self, name: str, entries: tuple[Entry, ...]) -> LayerGroup:
        """Return the group of one module, or of a reserved name."""
        lo_j, hi_j = self._intervals.bound(entries) or (None, None)
        energy_j = fsum(entry.energy_self_j for entry in entries)
        share = energy_j / self._run_j if self._run_j > 0 else None
        return LayerGroup(name, 0 if name in RESERVED else 1, entries, share, lo_j, hi_j)


def _make_groups(
    report: Report, layers: Sequence[LayerSum], name_of: Callable[[LayerSum], str]
) -> tuple[LayerGroup, ...]:
    members: dict[str, list[LayerSum]] = defaultdict(list)
    for layer in layers:
        members[layer.fqn if layer.reserved else name_of(layer)].append(layer)
    maker = _GroupMaker(report)
    groups = []
    for name, of_group in members.items():
        group = maker.make(name, tuple(entry for layer in of_group for entry in layer.entries))
        if len(of_group) > 1:
            each_j = [layer.energy_j for layer in of_group]
            group = replace(group, count=len(of_group), each_lo_j=min(each_j), each_hi_j=max(each_j))
        groups.append(group)
    return mark_unclear(sorted(groups, key=lambda group: (-group.energy_j, group.name)))


def mark_unclear(groups: Sequence[LayerGroup]) -> tuple[LayerGroup, ...]:
    """Mark the groups whose order relative to the row above is uncertain."""
    halves = [(group.energy_j, None if group.hi_j is None else group.hi_j - group.energy_j) for group in groups]
    ties = [False, *(is_tied(upper, lower) for upper, lower in pairwise(halves))]
    return tuple(replace(group, unclear=tied) for group, tied in zip(groups, ties, strict=False))


def tree_groups(report: Report, max_modules: int | None = None) -> tuple[LayerGroup, ...]:
    """Return the modules, each followed by those inside it, and the reserved rows.

    Args:
        report: The report to show.
        max_modules: Fold the smaller modules of each container into one row, "(n smaller)"; None: fold none.
    """
    booked, maker = build_layer_tree(report), _GroupMaker(report)
    tops = booked.tops if max_modules is None else fold_tree(booked.tops, max_modules)
    waiting = [(node, TOP_CONTAINER, 0) for node in reversed(tops)]
    shown: list[tuple[ModuleNode, str, int]] = []
    while waiting:  # without recursion: a tree may have a thousand levels
        node, container, depth = waiting.pop()
        shown.append((node, container, depth))
        waiting += [(child, node.fqn, depth + 1) for child in reversed(node.children)]
    folded = _folded_entries(booked.modules, {node.fqn for node, _, _ in shown}, class_names(report))
    rows = []
    for node, container, depth in shown:
        entries = folded.get(container, ()) if node.smaller else node.layer.entries if node.layer else ()
        group = maker.make(node.fqn, tuple(entries))
        rows.append(replace(group, count=node.smaller or 1, depth=depth, total_j=node.total_j))
    return (*rows, *(maker.make(layer.fqn, layer.entries) for layer in booked.reserved))


def _folded_entries(
    modules: Sequence[LayerSum], shown: Collection[str], classes: Collection[str]
) -> dict[str, list[Entry]]:
    """Return the entries of modules that are not shown, by the innermost container that is."""
    container_of = find_containers((layer.fqn for layer in modules), classes)
    folded: dict[str, list[Entry]] = defaultdict(list)
    for layer in modules:
        name = layer.fqn
        while name not in shown and name != TOP_CONTAINER:
            name = container_of[name]
        if name != layer.fqn:
            folded[name] += layer.entries
    return folded


def fold_names(names: Iterable[str], kinds: Mapping[str, ModuleKind]) -> dict[str, str]:
    """Return the folded name of each name.

    A number between dots becomes `*` if all numbered siblings are alike: of the same class and number of parameters,
    with alike modules inside. If only some are alike, their numbers are listed, as in `layers.{3-60}.mlp`.
    """
    named = list(names)
    children = _children_of(named)
    part_of = _folded_parts(children, _find_shapes(children, kinds))
    folded = {"": ""}
    for name in sorted(children, key=lambda name: name.count(".")):
        container, _, part = name.rpartition(".")
        folded[name] = f"{folded[container]}.{part_of.get(name, part)}" if container else part_of.get(name, name)
    return {name: folded[name] for name in named}


def _children_of(names: Iterable[str]) -> dict[str, Collection[str]]:
    """Return the direct children of each name and each of its containers; those of the top are under ""."""
    inside: dict[str, set[str]] = {"": set()}
    found: dict[str, None] = {}
    for name in names:
        inner = name
        while inner:
            container = inner.rpartition(".")[0] if inner not in RESERVED else ""
            if container not in inside:
                inside[container] = set()
            found[inner] = None
            if inner in inside[container]:
                break
            inside[container].add(inner)
            inner = container
    return {**dict.fromkeys(found, ()), **inside}


def _find_shapes(children: Mapping[str, Collection[str]], kinds: Mapping[str, ModuleKind]) -> dict[str, int]:
    """Return a number for each name, equal for names of the same class, parameters and modules inside."""
    numbers: dict[object, int] = {}
    shape: dict[str, int] = {}
    for name in sorted(children, key=lambda name: -name.count(".") if name else 1):
        child_shapes = tuple(sorted((child.rpartition(".")[2], shape[child]) for child in children[name]))
        key = (kinds.get(name, ("", 0)), child_shapes)
        shape[name] = numbers.setdefault(key, len(numbers))
    return shape


def _folded_parts(children: Mapping[str, Collection[str]], shape: Mapping[str, int]) -> dict[str, str]:
    """Return the last part of the folded name of each numbered module that has an alike sibling."""
    parts: dict[str, str] = {}
    for siblings in filter(None, children.values()):
        numbered = [name for name in siblings if name.rpartition(".")[2].isdecimal()]
        same_shape: dict[int, list[str]] = defaultdict(list)
        for name in numbered:
            same_shape[shape[name]].append(name)
        for members in same_shape.values():
            if len(members) > 1:
                numbers = sorted(int(name.rpartition(".")[2]) for name in members)
                label = "*" if len(members) == len(numbered) else f"{{{_list_numbers(numbers)}}}"
                parts |= dict.fromkeys(members, label)
    return parts


def _list_numbers(numbers: Sequence[int]) -> str:
    """Write sorted numbers with ranges: `0-2,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# Kinds of modules and parts of their class names, tried in turn.
_TYPES = (
    ("Linear", r"^Conv1D$"),  # of Hugging Face: a linear layer
    ("attention", r"(?i)attention|attn|sdpa"),
    ("norm", r"(?i)norm"),
    ("embedding", r"(?i)embed"),
    ("Linear", r"(?i)linear|^dense$"),
    ("convolution", r"(?i)conv"),
    ("recurrent", r"(?i)lstm|gru|^rnn"),
    ("activation", r"(?i)relu|gelu|silu|sigmoid|tanh|softmax|softplus|softsign|swish|mish|activation|^([ct]?elu|glu)$"),
    ("dropout", r"(?i)dropout|droppath"),
    ("pooling", r"(?i)pool"),
    ("loss", r"(?i)loss$"),
)


def module_type(class_name: str) -> str:
    """Return the kind of a module by its class name; the class name itself for others, such as `GPT2Block`."""
    return next((kind for kind, pattern in _TYPES if re.search(pattern, class_name)), class_name or "class unknown")
