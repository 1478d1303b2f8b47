"""Self and total: who contains whom, by dotted name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum

from torchwatt.core.ledger import Entry
from torchwatt.core.terms import RESERVED, ROOT, Phase, Slot
from torchwatt.views.layers import LayerSum

MAX_DEPTH = 24  # deeper names keep their last dots; a browser, and recursion, end somewhere


def ancestors(fqn: str, modules: Collection[str]) -> Iterator[str]:
    """Yield the names that contain a name, itself first.

    `(root)` contains every name of the main model: those among `modules`, or, where the modules are not
    known, every name that is not reserved. Reserved names contain nothing and are in nothing.
    """
    yield fqn
    if fqn in RESERVED or fqn == ROOT:
        return
    end = fqn.rfind(".")
    while end > 0:
        yield fqn[:end]
        end = fqn.rfind(".", 0, end)
    if not modules or fqn in modules:
        yield ROOT


def totals(entries: Iterable[Entry], modules: Collection[str] = ()) -> dict[Slot, float]:
    """Return total joules, children included, of each slot and of the names above it."""
    parts: dict[Slot, list[float]] = defaultdict(list)
    for entry in entries:
        for name in ancestors(entry.fqn, modules):
            parts[Slot(name, entry.phase)].append(entry.energy_self_j)
    return {slot: fsum(joules) for slot, joules in parts.items()}


@dataclass(frozen=True, slots=True)
class Node:
    """One module of the tree: `layer` is what is booked to itself, None for a pure container."""

    name: str
    fqn: str
    layer: LayerSum | None
    children: tuple[Node, ...]
    total_by_phase: Mapping[Phase, float]

    @property
    def total_j(self) -> float:
        """Return joules over all phases, children included."""
        return fsum(self.total_by_phase.values())


def tree(layers: Sequence[LayerSum], modules: Collection[str] = ()) -> tuple[Node, ...]:
    """Return the top nodes, most joules first; reserved names are not in it."""
    own = {layer.fqn: layer for layer in layers if not layer.reserved}
    kids: dict[str, dict[str, None]] = defaultdict(dict)
    tops: dict[str, None] = {}
    for fqn in own:
        _link(fqn, ROOT in own and (not modules or fqn in modules), kids, tops)
    return _sorted(_node(fqn, "", own, kids) for fqn in tops)


def _link(fqn: str, under_root: bool, kids: dict[str, dict[str, None]], tops: dict[str, None]) -> None:
    if fqn == ROOT:
        tops[ROOT] = None
        return
    path = _path(fqn)
    for parent, child in pairwise(path):
        kids[parent][child] = None
    (kids[ROOT] if under_root else tops)[path[0]] = None


def _path(fqn: str) -> list[str]:
    """Return a name and what contains it, outermost first: `a.b` is `a`, `a.b`."""
    parts = fqn.split(".", MAX_DEPTH)
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _node(fqn: str, parent: str, own: Mapping[str, LayerSum], kids: Mapping[str, Mapping[str, None]]) -> Node:
    children = _sorted(_node(child, fqn, own, kids) for child in kids.get(fqn, ()))
    layer = own.get(fqn)
    parts: dict[Phase, list[float]] = defaultdict(list)
    for phase, energy in layer.phases.items() if layer else ():
        parts[phase].append(energy.energy_j)
    for child in children:
        for phase, energy_j in child.total_by_phase.items():
            parts[phase].append(energy_j)
    name = fqn.removeprefix(f"{parent}.") if parent not in {"", ROOT} else fqn
    return Node(name, fqn, layer, children, {phase: fsum(joules) for phase, joules in parts.items()})


def _sorted(nodes: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(sorted(nodes, key=lambda node: (-node.total_j, node.fqn)))
