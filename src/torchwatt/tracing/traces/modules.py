"""Name modules of a foreign trace, which has only `Conv2d_7`, by their path of calls."""

from __future__ import annotations

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.core.trace import ModuleInfo
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.labels import MODULE_PREFIX, class_name
from torchwatt.tracing.traces.nest import nest
from torchwatt.tracing.traces.tables import MODULE, Kineto


def module_paths(trace: Kineto) -> dict[int, str]:
    """Return for each name code of a module its path, such as `ResNet_0.Sequential_1.Conv2d_7`.

    A module with several callers keeps the path of its deepest call, the first of equals: a call without its callers
    (the trace began inside, a checkpoint repeats it in backward) has a shorter path.
    """
    ranges = trace.ranges
    calls = np.flatnonzero(ranges.kind == MODULE)
    if not len(calls):
        return {}
    tree = nest(ranges.thread[calls], ranges.start_ns[calls], ranges.end_ns[calls])
    name, parent = ranges.name[calls], tree.parent
    order = np.lexsort((ranges.start_ns[calls], -depths(parent), name))
    names, deepest = np.unique(name[order], return_index=True)
    caller = {int(n): _caller(int(order[at]), name, parent) for n, at in zip(names, deepest, strict=True)}
    return {code: _path(code, caller, trace.names) for code in caller}


def depths(parent: IntArray) -> IntArray:
    """Return the number of intervals that enclose each."""
    depth = np.zeros(len(parent), dtype=np.int64)
    above = parent.copy()
    while True:
        nested = above != NOBODY
        if not nested.any():
            return depth
        depth += nested
        above = np.where(nested, parent[above], NOBODY)


def _caller(call: int, name: IntArray, parent: IntArray) -> int:
    """Return the name of the next enclosing call of another module."""
    up = int(parent[call])
    while up != NOBODY and name[up] == name[call]:
        up = int(parent[up])
    return int(name[up]) if up != NOBODY else NOBODY


def _path(code: int, caller: dict[int, int], names: tuple[str, ...]) -> str:
    parts: list[str] = []
    visited: set[int] = set()
    while code != NOBODY and code not in visited:  # two modules that call each other would loop forever
        visited.add(code)
        parts.append(names[code].removeprefix(MODULE_PREFIX).replace(".", "_"))
        code = caller[code]
    return ".".join(reversed(parts))


def module_infos(paths: dict[int, str]) -> tuple[ModuleInfo, ...]:
    """Return the modules as listed in reports."""
    return tuple(ModuleInfo(path, class_name(path.rpartition(".")[2])) for path in sorted(paths.values()))
