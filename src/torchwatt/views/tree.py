"""The tree of modules by dotted name, with self and total energy; all views take their totals from here."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

from torchwatt.core.report import Report
from torchwatt.core.terms import RESERVED, ROOT, Phase
from torchwatt.views.layers import LayerSum, class_names, layer_sums

MAX_DEPTH = 32  # levels of a tree that are shown, to bound indentation and recursion
TOP = ""  # the container of names without another one


def containers(names: Iterable[str], modules: Collection[str] = ()) -> dict[str, str]:
    """Return the direct container of each name and of each of its containers, innermost first.

    `a.b` is in `a`, and `a` is in `TOP` or in `(root)`, which contains every name of the main model: those whose first
    part is one of `modules`, or, where the modules are not known, all of them. Reserved names have no
    container and are omitted.
    """
    named = [name for name in names if name not in RESERVED]
    rooted = ROOT in modules or ROOT in named
    tops = {module.partition(".")[0] for module in modules}
    container_of: dict[str, str] = {ROOT: TOP} if rooted else {}
    for name in named:
        inner = name
        while inner not in container_of and inner.rfind(".") > 0:
            container = inner.rpartition(".")[0]
            container_of[inner] = container
            inner = container
        if inner not in container_of:
            container_of[inner] = ROOT if rooted and (not modules or inner in tops) else TOP
    return dict(sorted(container_of.items(), key=lambda item: (item[0] == ROOT, -item[0].count("."))))


def totals(
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
class Node:
    """One module of the tree; `layer` holds its own entries, None for a pure container.

    If `smaller` is not 0, the node stands for that number of folded modules of its parent.
    """

    name: str
    fqn: str
    layer: LayerSum | None
    children: tuple[Node, ...]
    total_by_phase: Mapping[Phase, float]
    static_by_phase: Mapping[Phase, float]  # the known static part of the total
    static_whole: bool  # whether the static part of all entries is known
    count: int = 1  # modules: itself and all inside it
    smaller: int = 0

    @property
    def total_j(self) -> float:
        """Return joules over all phases, children included."""
        return fsum(self.total_by_phase.values())


def tree(layers: Sequence[LayerSum], modules: Collection[str] = ()) -> tuple[Node, ...]:
    """Return the top nodes, most joules first; reserved names are not in it."""
    own = {layer.fqn: layer for layer in layers if not layer.reserved}
    container_of = containers(own, modules)
    entries = [entry for layer in own.values() for entry in layer.entries]
    total = totals(((e.fqn, e.phase, e.energy_self_j) for e in entries), container_of)
    static = totals(
        ((e.fqn, e.phase, e.energy_static_j) for e in entries if e.energy_static_j is not None), container_of
    )
    unknown = totals(((e.fqn, e.phase, 1.0) for e in entries if e.energy_static_j is None), container_of)
    children: dict[str, list[Node]] = defaultdict(list)
    for fqn, container in container_of.items():
        node_children = _sorted(children.pop(fqn, ()))
        name = fqn if container in {TOP, ROOT} else fqn.removeprefix(f"{container}.")
        count = 1 + sum(node.count for node in node_children)
        node = Node(name, fqn, own.get(fqn), node_children, total[fqn], static[fqn], not unknown[fqn], count)
        children[container].append(node)
    return _sorted(children[TOP])


@dataclass(frozen=True, slots=True, eq=False)
class Books:
    """A report's modules and reserved rows, each most joules first, and its modules as a tree."""

    modules: tuple[LayerSum, ...]
    reserved: tuple[LayerSum, ...]
    tops: tuple[Node, ...]


def books(report: Report) -> Books:
    """Sum a report by layer, and build its tree."""
    everything = layer_sums(report)
    modules = tuple(layer for layer in everything if not layer.reserved)
    reserved = tuple(layer for layer in everything if layer.reserved)
    return Books(modules, reserved, tree(modules, class_names(report)))


def fold_tree(tops: Sequence[Node], max_modules: int) -> tuple[Node, ...]:
    """Keep the `max_modules` modules with the most joules, and their containers; fold the others into "(n smaller)".

    Totals stay as they are. A module that would be the only one to be folded in its parent is shown instead.
    """
    expanded: list[Node] = []
    waiting = [(-node.total_j, node.fqn, node, 1) for node in tops]
    heapq.heapify(waiting)
    while waiting and len(expanded) < max_modules:
        _, _, node, depth = heapq.heappop(waiting)
        expanded.append(node)
        if depth < MAX_DEPTH:
            for child in node.children:
                heapq.heappush(waiting, (-child.total_j, child.fqn, child, depth + 1))
    shown: dict[str, Node] = {}
    for node in reversed(expanded):  # a container was kept before what is inside it
        shown[node.fqn] = replace(node, children=_folded(node.children, shown, node.fqn))
    return _folded(tops, shown, TOP)


def _folded(siblings: Sequence[Node], shown: Mapping[str, Node], container: str) -> tuple[Node, ...]:
    folded = [node for node in siblings if node.fqn not in shown]
    visible = [shown[node.fqn] for node in siblings if node.fqn in shown]
    count = sum(node.count for node in folded)
    if count <= 1:
        return tuple(visible + folded)
    name = smaller(count)
    fqn = name if container in {TOP, ROOT} else f"{container}.{name}"
    total = _sum_by_phase(node.total_by_phase for node in folded)
    static = _sum_by_phase(node.static_by_phase for node in folded)
    static_whole = all(node.static_whole for node in folded)
    return (*visible, Node(name, fqn, None, (), total, static, static_whole, count, smaller=count))


def _sum_by_phase(values: Iterable[Mapping[Phase, float]]) -> dict[Phase, float]:
    parts: dict[Phase, list[float]] = defaultdict(list)
    for by_phase in values:
        for phase, energy_j in by_phase.items():
            parts[phase].append(energy_j)
    return {phase: fsum(joules) for phase, joules in parts.items()}


def smaller(count: int) -> str:
    """Return the name of a row for `count` folded modules."""
    return f"({count} smaller)"


def _sorted(nodes: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(sorted(nodes, key=lambda node: (-node.total_j, node.fqn)))
