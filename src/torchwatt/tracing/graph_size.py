"""Test whether the calls counted in a step account for the size of its graph. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

EXACT = 1e-3  # of a node


class GraphSizes:
    """Graph sizes of steps as sums over the calls counted in them.

    Where each call of a counted module makes equally many nodes, the size of a graph follows from the calls. A step
    with another graph size called modules that were not counted more or less often.

    Args:
        steps: Calls of each module in a step, by key, and the number of nodes made.
        over: The counted modules.
        similar: Modules that make equal graphs share a value.
    """

    def __init__(
        self, steps: Sequence[tuple[Mapping[int, int], int]], over: frozenset[int], similar: Mapping[int, object]
    ) -> None:
        self._over, self._alike = over, similar
        rows = {(tuple(sorted(self._row(counts).items(), key=str)), nodes) for counts, nodes in steps}
        names = sorted({name for row, _ in rows for name, _ in row}, key=str)
        self._place = {name: i for i, name in enumerate(names)}
        self._seen = {(self._vector(dict(row)), nodes) for row, nodes in rows}
        self._rows = np.array([row for row, _ in self._seen], dtype=np.float64).reshape(len(self._seen), len(names))
        nodes = np.array([nodes for _, nodes in self._seen], dtype=np.float64)
        self._each = np.linalg.lstsq(self._rows, nodes, rcond=None)[0] if len(nodes) else np.zeros(0)
        self._is_exact = len(nodes) > 0 and bool(np.abs(self._rows @ self._each - nodes).max() < EXACT)

    def explain(self, counts: Mapping[int, int], nodes: int) -> bool:
        """Return whether a step with such calls makes that many nodes, judged by the recorded steps.

        A module without similar ones in those steps may have made the excess.
        """
        row = self._row(counts)
        new = row.keys() - self._place.keys()
        vector = self._vector(row)
        if not new and (vector, nodes) in self._seen:
            return True
        if not self._is_exact:
            return False
        of_rows = np.linalg.lstsq(self._rows.T, np.array(vector, dtype=np.float64), rcond=None)[0]
        is_told = np.abs(self._rows.T @ of_rows - vector).max() < EXACT
        residual = nodes - float(np.dot(vector, self._each))
        return bool(is_told and (residual > -EXACT if new else abs(residual) < EXACT))

    def _row(self, counts: Mapping[int, int]) -> Counter[object]:
        """Return the calls of modules, similar ones summed, with a constant 1 for the step."""
        row: Counter[object] = Counter({None: 1})
        for key, n in counts.items():
            if key in self._over and n:
                row[self._alike.get(key, key)] += n
        return row

    def _vector(self, row: Mapping[object, int]) -> tuple[int, ...]:
        return tuple(row.get(name, 0) for name in self._place)
