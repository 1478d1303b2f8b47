"""The tree of modules by dotted name, with self and total energy; all views take their totals from here."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

import numpy as np

from torchwatt.core.ledger import Entry, Ledger, energy_per_tflop_j, layer_values
from torchwatt.core.meter import FloatArray
from torchwatt.core.report import Report
from torchwatt.core.terms import RESERVED, ROOT, Phase
from torchwatt.views.layer_sums import LayerSum, class_names, is_tied, sum_layers

MAX_DEPTH = 32  # levels of a tree that are shown, to bound indentation and recursion
TOP_CONTAINER = ""  # the container of names without another one


def find_containers(names: Iterable[str], modules: Collection[str] = ()) -> dict[str, str]:
    """Return the direct container of each name and of each of its containers, innermost first.

    `a.b` is in `a`, and `a` is in `TOP_CONTAINER` or in `(root)`, which contains every name of the main model: those
    whose first part is one of `modules`, or all of them where the modules are not given. Reserved names have no
    container and are omitted.
    """
    named = [name for name in names if name not in RESERVED]
    rooted = ROOT in modules or ROOT in named
    tops = {module.partition(".")[0] for module in modules}
    container_of: dict[str, str] = {ROOT: TOP_CONTAINER} if rooted else {}
    for name in named:
        inner = name
        while inner not in container_of and inner.rfind(".") > 0:
            container = inner.rpartition(".")[0]
            container_of[inner] = container
            inner = container
        if inner not in container_of:
            container_of[inner] = ROOT if rooted and (not modules or inner in tops) else TOP_CONTAINER
    return dict(sorted(container_of.items(), key=lambda item: (item[0] == ROOT, -item[0].count("."))))


class NameTree:
    """Names with their containers as arrays, for adding up many names at once.

    Attributes:
        names: All names.
        number: The index of each name.
        parent: The index of each name's container; `len(names)` stands for `TOP_CONTAINER`.
        depth: Levels of each name, 1 at the top.
    """

    def __init__(self, container_of: Mapping[str, str]) -> None:
        """Take the container of each name, in any order."""
        self.names = tuple(container_of)
        top = len(self.names)
        self.number = {name: number for number, name in enumerate(self.names)}
        self.parent = np.array([self.number.get(name, top) for name in container_of.values()], dtype=np.int64)
        self.depth, above = np.ones(top, dtype=np.int64), self.parent.copy()
        while (inside := above < top).any():
            self.depth += inside
            above = np.where(inside, np.append(self.parent, top)[above], top)
        self._levels = [np.flatnonzero(self.depth == depth) for depth in range(self.depth.max(initial=0), 0, -1)]

    def totals(self, own: FloatArray) -> FloatArray:
        """Return for each name the sum of its own row and those of everything inside it, and at the end of all."""
        total = np.concatenate((own, np.zeros((1, *own.shape[1:]))))
        for level in self._levels:
            np.add.at(total, self.parent[level], total[level])
        return total


def sum_totals(
    booked: Iterable[tuple[str, Phase, float]], container_of: Mapping[str, str]
) -> dict[str, dict[Phase, float]]:
    """Return total joules by name and phase: its own, and those of everything inside it.

    Args:
        booked: Name, phase and joules; reserved names are skipped.
        container_of: The container of each name, innermost first (see `containers`).
    """
    parts: dict[str, dict[Phase, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, phase, energy_j in booked:
        parts[name][phase].append(energy_j)
    total_of_name: dict[str, dict[Phase, float]] = {}
    for name, container in container_of.items():
        total_of_name[name] = {phase: fsum(joules) for phase, joules in parts.pop(name, {}).items()}
        for phase, total_j in total_of_name[name].items():
            parts[container][phase].append(total_j)
    return total_of_name


@dataclass(frozen=True, slots=True, eq=False)
class ModuleNode:
    """One module of the tree; `layer` holds its own entries, None for a pure container.

    If `smaller` is not 0, the node stands for that number of folded modules of its parent.
    """

    name: str
    fqn: str
    layer: LayerSum | None
    children: tuple[ModuleNode, ...]
    total_by_phase: Mapping[Phase, float]
    static_by_phase: Mapping[Phase, float]  # the known static part of the total
    static_whole: bool  # whether the static part of all entries is known
    count: int = 1  # modules: itself and all inside it
    smaller: int = 0

    @property
    def total_j(self) -> float:
        """Return joules over all phases, children included."""
        return fsum(self.total_by_phase.values())


def build_tree(layers: Sequence[LayerSum], modules: Collection[str] = ()) -> tuple[ModuleNode, ...]:
    """Return the top nodes, most joules first; reserved names are not in it."""
    own = {layer.fqn: layer for layer in layers if not layer.reserved}
    container_of = find_containers(own, modules)
    entries = [entry for layer in own.values() for entry in layer.entries]
    total = sum_totals(((e.fqn, e.phase, e.energy_self_j) for e in entries), container_of)
    static = sum_totals(
        ((e.fqn, e.phase, e.energy_static_j) for e in entries if e.energy_static_j is not None), container_of
    )
    unknown = {e.fqn for e in entries if e.energy_static_j is None}
    for name, container in container_of.items():  # innermost first
        if name in unknown:
            unknown.add(container)
    children: dict[str, list[ModuleNode]] = defaultdict(list)
    for fqn, container in container_of.items():
        node_children = _sort_nodes(children.pop(fqn, ()))
        name = fqn if container in {TOP_CONTAINER, ROOT} else fqn.removeprefix(f"{container}.")
        count = 1 + sum(node.count for node in node_children)
        node = ModuleNode(name, fqn, own.get(fqn), node_children, total[fqn], static[fqn], fqn not in unknown, count)
        children[container].append(node)
    return _sort_nodes(children[TOP_CONTAINER])


@dataclass(frozen=True, slots=True, eq=False)
class LayerTree:
    """A report's modules and reserved rows, each most joules first, and its modules as a tree."""

    modules: tuple[LayerSum, ...]
    reserved: tuple[LayerSum, ...]
    tops: tuple[ModuleNode, ...]


def build_layer_tree(report: Report) -> LayerTree:
    """Sum a report by layer, and build its tree."""
    everything = sum_layers(report)
    modules = tuple(layer for layer in everything if not layer.reserved)
    reserved = tuple(layer for layer in everything if layer.reserved)
    return LayerTree(modules, reserved, build_tree(modules, class_names(report)))


def fold_tree(tops: Sequence[ModuleNode], max_modules: int) -> tuple[ModuleNode, ...]:
    """Keep the `max_modules` modules with the most joules, and their containers; fold the others into "(n smaller)".

    Totals stay as they are. A module that would be the only one to be folded in its parent is shown instead.
    """
    expanded: list[ModuleNode] = []
    waiting = [(-node.total_j, node.fqn, node, 1) for node in tops]
    heapq.heapify(waiting)
    while waiting and len(expanded) < max_modules:
        _, _, node, depth = heapq.heappop(waiting)
        expanded.append(node)
        if depth < MAX_DEPTH:
            for child in node.children:
                heapq.heappush(waiting, (-child.total_j, child.fqn, child, depth + 1))
    shown: dict[str, ModuleNode] = {}
    for node in reversed(expanded):  # a container was kept before what is inside it
        shown[node.fqn] = replace(node, children=_fold_siblings(node.children, shown, node.fqn))
    return _fold_siblings(tops, shown, TOP_CONTAINER)


def _fold_siblings(
    siblings: Sequence[ModuleNode], shown: Mapping[str, ModuleNode], container: str
) -> tuple[ModuleNode, ...]:
    folded = [node for node in siblings if node.fqn not in shown]
    visible = [shown[node.fqn] for node in siblings if node.fqn in shown]
    count = sum(node.count for node in folded)
    if count <= 1:
        return tuple(visible + folded)
    name = smaller_label(count)
    fqn = name if container in {TOP_CONTAINER, ROOT} else f"{container}.{name}"
    total = _sum_by_phase(node.total_by_phase for node in folded)
    static = _sum_by_phase(node.static_by_phase for node in folded)
    static_whole = all(node.static_whole for node in folded)
    return (*visible, ModuleNode(name, fqn, None, (), total, static, static_whole, count, smaller=count))


def _sum_by_phase(values: Iterable[Mapping[Phase, float]]) -> dict[Phase, float]:
    parts: dict[Phase, list[float]] = defaultdict(list)
    for by_phase in values:
        for phase, energy_j in by_phase.items():
            parts[phase].append(energy_j)
    return {phase: fsum(joules) for phase, joules in parts.items()}


def smaller_label(count: int) -> str:
    """Return the name of a row for `count` folded modules."""
    return f"({count} smaller)"


def _sort_nodes(nodes: Iterable[ModuleNode]) -> tuple[ModuleNode, ...]:
    return tuple(sorted(nodes, key=lambda node: (-node.total_j, node.fqn)))


# Of the joules of modules: a group above its share is replaced by what it contains. A repeated block, which has parts
# of several kinds, is replaced early; a part of repeated blocks late, since its parts are many and have long names.
_SPLIT_SHARE, _SPLIT_BLOCK_SHARE, _SPLIT_PART_SHARE = 0.6, 0.3, 0.75


class GroupTree:
    """Folded names of modules with their containers; divides joules among the groups that tell most."""

    def __init__(self, folded: Sequence[str]) -> None:
        container_of: dict[str, str] = {}
        children: dict[str, set[str]] = defaultdict(set)
        for name in folded:
            parent, end = TOP_CONTAINER, 0
            while end < len(name):
                dot = name.find(".", end + 1)
                end = dot if dot > 0 else len(name)
                path = name[:end]  # cut, not joined anew: a name may have a thousand levels
                container_of[path] = parent
                children[parent].add(path)
                parent = path
        self._tree = NameTree(container_of)
        self._children = {parent: sorted(parts) for parent, parts in children.items()}
        self._modules = np.array([self._tree.number[name] for name in folded], dtype=np.int64)
        self._own = frozenset(folded)

    def split(self, energy_j: FloatArray) -> dict[str, float]:
        """Return joules by group, of the joules of each module."""
        own_j = np.bincount(self._modules, energy_j, len(self._tree.names)).astype(np.float64)
        total_j = self._tree.totals(own_j)
        groups: dict[str, float] = {}
        waiting = list(self._children.get(TOP_CONTAINER, ()))
        while waiting:
            path = waiting.pop()
            number = self._tree.number[path]
            if not self._is_split(path, float(total_j[number]), float(total_j[-1])):
                groups[path] = float(total_j[number])
                continue
            waiting += self._children[path]
            if path in self._own:
                groups[f"{path} itself"] = float(own_j[number])
        return groups

    def _is_split(self, path: str, total_j: float, modules_j: float) -> bool:
        parts = self._children.get(path, ())
        if path.endswith("}") and path not in self._own:  # a list in a list does nothing by itself
            return bool(parts)
        share = _SPLIT_PART_SHARE if "*" in path or "}" in path else _SPLIT_SHARE
        if path.endswith(("*", "}")) or (len(parts) == 1 and path not in self._own):
            share = _SPLIT_BLOCK_SHARE
        return bool(parts) and total_j > share * modules_j


LAYER_COLUMNS = (
    "domain",
    "fqn",
    "phase",
    "stage",
    "module_class",
    "energy_self_j",
    "energy_self_lo_j",
    "energy_self_hi_j",
    "energy_total_j",
    "energy_static_j",
    "energy_dynamic_j",
    "energy_share",
    "time_self_s",
    "calls",
    "energy_per_call_j",
    "method",
    "provenance",
    "carried_share",
    "measured_share",
    "measured_in",
    "time_share_j",
    "counted",
    "energy_systematic_lo_j",
    "energy_systematic_hi_j",
    "tied",
    "dtype",
    "flops",
    "bytes_moved",
    "energy_per_tflop_j",
    "bytes_per_s",
)


def layer_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row per (domain, fqn, phase, stage), most joules first within its domain; None is unknown.

    A module without own entries has a row for each phase of the modules inside it. `tied`: the interval of the
    difference from the row above includes 0.
    """
    classes, dtypes = class_names(report), {name: m.dtype for m in report.modules for name in (m.fqn, *m.aliases)}
    container_of = find_containers((entry.fqn for ledger in report.counted for entry in ledger.entries), classes)
    rows = []
    for ledger in report.counted:
        total = {
            stage: sum_totals(
                ((e.fqn, e.phase, e.energy_self_j) for e in ledger.entries if e.stage == stage), container_of
            )
            for stage in sorted({entry.stage for entry in ledger.entries})
        }
        ordered = sorted(ledger.entries, key=lambda e: (-e.energy_self_j, e.fqn, e.phase, e.stage))
        for above, entry in zip([None, *ordered], ordered, strict=False):
            # A reserved name contains nothing: its total is its own.
            total_j = total[entry.stage].get(entry.fqn, {}).get(entry.phase, entry.energy_self_j)
            row = _entry_row(ledger, entry, total_j, classes.get(entry.fqn))
            row["dtype"] = dtypes.get(entry.fqn) or None
            rows.append(
                row | {"tied": above is not None and is_tied(_entry_half_interval(above), _entry_half_interval(entry))}
            )
        booked = {(entry.fqn, entry.phase, entry.stage) for entry in ledger.entries}
        rows += [
            _container_row(ledger, fqn, phase, stage, total_j, classes.get(fqn))
            for stage, by_name in total.items()
            for fqn, by_phase in reversed(by_name.items())
            for phase, total_j in by_phase.items()
            if (fqn, phase, stage) not in booked
        ]
    return rows


def _container_row(
    ledger: Ledger, fqn: str, phase: Phase, stage: str, total_j: float, module_class: str | None
) -> dict[str, Any]:
    """Return the row of a module without own entries in this phase: its self energy is 0."""
    values = {
        "domain": str(ledger.domain),
        "fqn": fqn,
        "phase": phase,
        "stage": stage,
        "module_class": module_class,
        "energy_self_j": 0.0,
        "energy_total_j": total_j,
        "energy_share": 0.0 if ledger.energy_j > 0 else None,
        "time_self_s": 0.0,
        "provenance": "derived",
        "counted": ledger.counted,
        "tied": False,
    }
    return {column: values.get(column) for column in LAYER_COLUMNS}


def _entry_half_interval(entry: Entry) -> tuple[float, float | None]:
    hi_j = entry.energy_self_hi_j
    return entry.energy_self_j, None if hi_j is None else hi_j - entry.energy_self_j


def _entry_row(ledger: Ledger, entry: Entry, total_j: float, module_class: str | None) -> dict[str, Any]:
    values = {
        **layer_values(ledger, entry),
        "domain": str(ledger.domain),
        "module_class": module_class,
        "energy_total_j": total_j,
        "measured_in": entry.measured_in or None,
        "energy_per_tflop_j": energy_per_tflop_j([entry]),
        "bytes_per_s": entry.bytes_moved / entry.time_self_s if entry.bytes_moved and entry.time_self_s > 0 else None,
        "counted": ledger.counted,
    }
    return {column: values.get(column) for column in LAYER_COLUMNS}
