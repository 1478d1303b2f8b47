"""JSON messages of the live view: one at the start of a run, then one for each update."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import FloatArray, IntArray, Meter, Unavailable
from torchwatt.core.terms import PHASES, RESERVED, ROOT, Provenance
from torchwatt.core.trace import ModuleKind
from torchwatt.views.answer import modules_name
from torchwatt.views.layer_groups import fold_names
from torchwatt.views.module_tree import MAX_DEPTH, TOP_CONTAINER, GroupTree, NameTree, find_containers, smaller_label
from torchwatt.views.number_format import format_energy
from torchwatt.views.report_payload import json_number, payload_text

LIVE_SCHEMA, LIVE_VERSION = "torchwatt.live", 1
MAX_TOP_GROUPS = 3
MAX_LIVE_LAYERS = 150  # modules of a message; smaller ones are folded into their parents


@dataclass(frozen=True, slots=True)
class LivePoint:
    """A point of the power curves: mean watts since the previous point by domain; None without a reading."""

    t_s: float
    power_w: Mapping[str, float | None]

    @property
    def total_w(self) -> float | None:
        """Return the watts of all domains; None if those of one are unknown."""
        watts = list(self.power_w.values())
        return fsum(w for w in watts if w is not None) if watts and None not in watts else None


def start_payload(
    run_id: str,
    name: str,
    meters: Sequence[Meter],
    unavailable: Sequence[Unavailable],
    carbon_how: str,
    *,
    traces: bool,
) -> dict[str, Any]:
    """Return the first message of a run."""
    return {
        "schema": LIVE_SCHEMA,
        "version": LIVE_VERSION,
        "run_id": payload_text(run_id),
        "name": payload_text(name),
        "domains": [
            {"domain": str(m.domain), "provenance": m.provenance, "meter": payload_text(m.model)}
            for m in _energy_meters(meters)
        ],
        "unavailable": [
            {"domain": payload_text(gone.domain), "reason": payload_text(gone.reason), "fix": payload_text(gone.fix)}
            for gone in unavailable
        ],
        "carbon_how": payload_text(carbon_how),
        "traces": traces,
    }


def update_payload(
    points: Sequence[LivePoint],
    domains_j: Mapping[str, float],
    power_w: Mapping[str, float | None],
    carbon_g: float | None,
    as_of_s: float,
) -> dict[str, Any]:
    """Return one update, without layers.

    Args:
        points: The latest points, the newest last.
        domains_j: Joules so far by domain.
        power_w: Watts now by domain.
        carbon_g: Grams so far.
        as_of_s: Seconds since the start up to which all joules are known; slow meters lag behind.
    """
    t_s = points[-1].t_s if points else 0.0
    return {
        "t_s": json_number(t_s),
        "as_of_s": json_number(min(max(as_of_s, 0.0), t_s)),
        "energy_j": json_number(sum(domains_j.values())) if domains_j else None,
        "carbon_g": json_number(carbon_g),
        "power_w": {domain: json_number(watts) for domain, watts in power_w.items()},
        "domains_j": {domain: json_number(joules) for domain, joules in domains_j.items()},
        "points": {
            "t_s": [round(point.t_s, 3) for point in points],
            "power_w": {domain: [json_number(point.power_w.get(domain)) for point in points] for domain in power_w},
        },
    }


def steps_payload(steps: int, step_j: float | None) -> dict[str, Any]:
    """Return the number of completed steps, and the joules of one as text."""
    return {"steps": steps, "per_step": "" if step_j is None else format_energy(step_j)}


def rate_payload(unit: str, unit_j: float | None, per_second: float | None = None) -> dict[str, Any]:
    """Return the joules of one step or counted unit as text, with units a second; nothing if they are unknown."""
    if unit_j is None:
        return {}
    return {"rate": {"label": payload_text(f"per {unit}"), "text": rate_text(unit_j, per_second)}}


def rate_text(unit_j: float, per_second: float | None) -> str:
    """Return joules per unit, and units a second where they are known: `35.1 mJ · 28.4/s`."""
    return format_energy(unit_j) + (f" · {per_second:.3g}/s" if per_second else "")


@dataclass(frozen=True, slots=True, eq=False)
class LiveSums:
    """Joules of a running session by phase and name; `names` and `kinds` are the same objects until they change.

    Attributes:
        names: Of modules, and reserved ones.
        energy_j: A row for each of `PHASES`, a column for each name; none is negative, and what has 0 is not shown.
        calls: By name; NaN where unknown.
        kinds: The kind of each name of a module.
        provenance: Of all joules.
        as_of_s: Seconds after the start until which the joules are known.
    """

    names: tuple[str, ...]
    energy_j: FloatArray
    calls: FloatArray
    kinds: Mapping[str, ModuleKind]
    provenance: Provenance
    as_of_s: float


class LiveLayersView:
    """Makes messages of the layers of one run; what depends on names only is kept from one to the next.

    A message has its layers as text, and sums are arrays: few objects are made, so that Python's garbage collector
    rarely runs in the thread of the view, where a full collection takes as long as all looks of half a minute.
    """

    def __init__(self) -> None:
        self._layout: _Layout | None = None

    def payload(self, sums: LiveSums) -> dict[str, Any]:
        """Return the largest groups, and the layers with the time up to which they are complete as JSON text."""
        layout = self._layout_of(sums)
        text = f'{{"as_of_s":{_number(sums.as_of_s)},{layout.layers_text(sums)},"folded":null}}'
        top = [[payload_text(name), json_number(share)] for name, share in self.top_groups(sums)]
        return {"top": top, "layers_text": text}

    def top_groups(self, sums: LiveSums) -> list[tuple[str, float]]:
        """Return names and shares of the groups with the most joules, largest first: those of the report's answer."""
        run_j = float(sums.energy_j.sum())
        layout = self._layout_of(sums)
        groups = sorted(layout.groups(sums).items(), key=lambda item: (-item[1], item[0]))[:MAX_TOP_GROUPS]
        return [(layout.group_name(name), energy_j / run_j) for name, energy_j in groups] if run_j > 0 else []

    def _layout_of(self, sums: LiveSums) -> _Layout:
        used = sums.energy_j > 0
        if self._layout is None or not self._layout.fits(sums, used):
            self._layout = _Layout(sums, used)
        return self._layout


class _Layout:
    """The tree of the names with joules.

    Args:
        sums: Their names.
        used: What has joules, as `LiveSums.energy_j`.
    """

    def __init__(self, sums: LiveSums, used: NDArray[np.bool_]) -> None:
        self._names, self._kinds, self._used = sums.names, sums.kinds, used
        columns = np.flatnonzero(used.any(axis=0)).tolist()
        self._reserved = [column for column in columns if sums.names[column] in RESERVED]
        columns = [column for column in columns if sums.names[column] not in RESERVED]
        names = [sums.names[column] for column in columns]
        container_of = find_containers(names, sums.kinds)
        tree = self._tree = NameTree(container_of)
        self._columns = np.array(columns, dtype=np.int64)  # of modules, and their places in the tree
        self._places = np.array([tree.number[name] for name in names], dtype=np.int64)
        column_of = dict(zip(names, columns, strict=True))
        self._column_of = [column_of.get(name) for name in tree.names]
        self._phases = np.flatnonzero(used[:, self._columns].any(axis=1))
        self._rank = np.argsort(np.argsort(np.array(tree.names, dtype=object)))
        self._count = tree.totals(np.ones(len(tree.names)))  # modules: itself and all inside it
        self._containers = tuple(container_of.values())
        self._heads = [""] * len(tree.names)
        self._modules, self._group_names = names, dict[str, str]()
        folded = fold_names(names, sums.kinds)
        self._groups = GroupTree([folded[name] for name in names])

    def fits(self, sums: LiveSums, used: NDArray[np.bool_]) -> bool:
        """Return whether this is the layout of these sums."""
        same = sums.names is self._names and sums.kinds is self._kinds
        return same and np.array_equal(used, self._used)

    def groups(self, sums: LiveSums) -> dict[str, float]:
        """Return joules by group of modules, and of each reserved name."""
        sum_j = sums.energy_j.sum(axis=0)
        reserved = {sums.names[column]: float(sum_j[column]) for column in self._reserved}
        return reserved | self._groups.split(sum_j[self._columns])

    def group_name(self, group: str) -> str:
        """Return the name of a group, as in the report's answer; a reserved name unchanged."""
        if group not in self._group_names:
            self._group_names[group] = modules_name(group, self._modules, self._kinds)
        return self._group_names[group]

    def layers_text(self, sums: LiveSums) -> str:
        """Return the largest modules, those inside the others of each container as one row, and the reserved names."""
        own_j = self._own_j(sums)
        total_j = self._tree.totals(own_j)
        sum_j = total_j.sum(axis=1)
        shown = self._largest(sum_j[:-1])
        hidden = np.ones(len(own_j), dtype=np.bool_)
        hidden[shown] = False
        is_shown = np.append(~hidden, True)
        cut = np.flatnonzero(hidden & is_shown[self._tree.parent])
        parent = self._tree.parent[cut]
        count = np.bincount(parent, self._count[cut], len(total_j)).astype(np.int64)
        alone = cut[count[parent] == 1]  # shown in place of a row "1 smaller"
        rows = [*shown.tolist(), *alone.tolist()]
        line_of = {number: line for line, number in enumerate(rows)}
        lines = [self._line(number, line_of, sums, own_j[number], total_j[number]) for number in rows]
        smaller_j = np.zeros_like(total_j)
        np.add.at(smaller_j, parent, total_j[cut])
        lines += [
            self._smaller_line(container, line_of, int(count[container]), smaller_j[container])
            for container in np.flatnonzero(count > 1).tolist()
        ]
        reserved_j = sums.energy_j.sum(axis=0)
        reserved = sorted(self._reserved, key=lambda column: (-reserved_j[column], sums.names[column]))
        ends = (self._reserved_line(column, sums) for column in reserved)
        return f'"layers":[{",".join(lines)}],"reserved":[{",".join(ends)}]'

    def _own_j(self, sums: LiveSums) -> FloatArray:
        own_j = np.zeros((len(self._tree.names), len(self._phases)))
        own_j[self._places] = sums.energy_j[np.ix_(self._phases, self._columns)].T
        return own_j

    def _largest(self, sum_j: FloatArray) -> IntArray:
        """Return the modules with the most joules, each after its container."""
        order = np.lexsort((self._rank, self._tree.depth, -sum_j))
        return order[self._tree.depth[order] <= MAX_DEPTH][:MAX_LIVE_LAYERS]

    def _line(
        self, number: int, line_of: Mapping[int, int], sums: LiveSums, own_j: FloatArray, total_j: FloatArray
    ) -> str:
        column = self._column_of[number]
        head = self._heads[number] = self._heads[number] or self._head(number, sums.provenance)
        parent = line_of.get(int(self._tree.parent[number]), "null")
        calls = "0" if column is None else _calls(sums, column)
        own, total = self._phase_text(own_j), self._phase_text(total_j)
        energy = _number(float(total_j.sum()))
        return f'{{{head},"parent":{parent},"calls":{calls},"self_j":{own},"total_j":{total},"energy_j":{energy}}}'

    def _head(self, number: int, provenance: Provenance) -> str:
        fqn, container = self._tree.names[number], self._containers[number]
        name = fqn if container in {TOP_CONTAINER, ROOT} else fqn.removeprefix(f"{container}.")
        has_own = self._column_of[number] is not None
        known = _text(provenance) if has_own else "null"
        class_name = self._kinds.get(fqn, ("", 0))[0] if has_own else ""
        return f'"fqn":{_text(fqn)},"name":{_text(name)},"class":{_text(class_name)},"provenance":{known}'

    def _smaller_line(self, container: int, line_of: Mapping[int, int], count: int, total_j: FloatArray) -> str:
        name = smaller_label(count)
        top = container == len(self._tree.names)
        outer = "" if top else self._tree.names[container]
        fqn = name if top or outer == ROOT else f"{outer}.{name}"
        total = self._phase_text(total_j)
        return (
            f'{{"fqn":{_text(fqn)},"name":{_text(name)},"class":"","provenance":null,'
            f'"parent":{"null" if top else line_of[container]},"calls":null,"folded":{count},'
            f'"self_j":{total},"total_j":{total},"energy_j":{_number(float(total_j.sum()))}}}'
        )

    def _reserved_line(self, column: int, sums: LiveSums) -> str:
        own = _phase_text(range(len(PHASES)), sums.energy_j[:, column])
        calls, known = _calls(sums, column), _text(sums.provenance)
        return f'{{"fqn":{_text(sums.names[column])},"class":"","provenance":{known},"calls":{calls},"self_j":{own}}}'

    def _phase_text(self, energy_j: FloatArray) -> str:
        return _phase_text(self._phases.tolist(), energy_j)


def _phase_text(phases: Iterable[int], energy_j: FloatArray) -> str:
    parts = zip(phases, energy_j.tolist(), strict=True)
    return "{" + ",".join([f'"{PHASES[phase]}":{_number(joules)}' for phase, joules in parts if joules > 0]) + "}"


def _calls(sums: LiveSums, column: int) -> str:
    calls = float(sums.calls[column])
    return "null" if isnan(calls) else str(round(calls))


def _number(value: float) -> str:
    return repr(json_number(value))


def _text(value: str) -> str:
    return json.dumps(payload_text(value))


def _energy_meters(meters: Sequence[Meter]) -> list[Meter]:
    return [m for m in meters if any(channel.quantity != "gauge" for channel in m.channels)]
