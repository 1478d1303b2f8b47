"""Tables of a live view: the name and phase that each sum belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import PHASES, UNATTRIBUTED, Slot
from torchwatt.core.trace import ModuleKind
from torchwatt.tracing.device_profiler import KEY_MARK
from torchwatt.tracing.log_rows import FIRST_SCOPE_KEY
from torchwatt.tracing.module_operations import ModuleMetadata
from torchwatt.tracing.module_registry import RESERVED_SLOTS, ModuleNames
from torchwatt.tracing.tally_reader import BACKWARD, FORWARD, GRADIENT, OWN, TimeSums

MANY_SIMILAR, EXCESS_RATIO = 4, 2.0
_FORWARD, _BACKWARD, _OTHER = map(PHASES.index, ("forward", "backward", "other"))
_PHASE_OF = {FORWARD: _FORWARD, BACKWARD: _BACKWARD}


class TallyRows:
    """The names of all sums, found once for each naming of the modules, so that a look only adds arrays.

    Tables have a row for each of `PHASES` and a column for each of `labels`, the names of modules and reserved ones.

    Args:
        names: The names of the modules.
        facts: What is known of each module by key.
        scopes: The key of each scope that the user named; may grow.
        size: Keys of modules are less than this.
    """

    def __init__(
        self, names: ModuleNames, facts: Mapping[int, ModuleMetadata], scopes: Mapping[str, int], size: int
    ) -> None:
        self.names, self.size = names, size
        self._scopes = scopes
        self._numbers: dict[str, int] = {}
        self._labels: tuple[str, ...] = ()
        self._device_places: dict[str, tuple[list[int], list[int]]] = {}
        of_key = [names.of(key) for key in range(size)]
        self._name_of_key = np.array([self.number(name) for name in of_key], dtype=np.int64)
        self._wrappers = [key for key in names.wrapped if key < size]  # their calls are those of the module inside
        alike: dict[object, int] = {}
        self._alike = np.array(
            [
                alike.setdefault((facts.get(key), re.sub(r"\d+", "#", name)), len(alike))
                for key, name in enumerate(of_key)
            ],
            dtype=np.int64,
        )
        shared: dict[ModuleKind, ModuleKind] = {}
        self.kinds: dict[str, ModuleKind] = {}  # of each name of a module
        for key, name in names.fqn.items():
            if key in facts and key not in names.wrapped:
                kind = facts[key].class_name, facts[key].params
                for each in (name, *names.aliases.get(key, ())):
                    self.kinds.setdefault(each, shared.setdefault(kind, kind))

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the name of each column; the same object until there are more."""
        if len(self._labels) != len(self._numbers):
            self._labels = tuple(self._numbers)
        return self._labels

    def number(self, name: str) -> int:
        """Return the column of a name; a new one is added."""
        return self._numbers.setdefault(name, len(self._numbers))

    def table(self, sums: TimeSums, gaps: Mapping[str, float]) -> FloatArray:
        """Return divided sums, and amounts of reserved names that are no module's, as a table."""
        parts = [(*self._place(kind, key), amount) for (kind, key), amount in sums.rest.items()]
        parts += [(_OTHER, self.number(name), amount) for name, amount in gaps.items()]
        table = self._empty()
        for phase, number, amount in parts:
            table[phase, number] += amount
        for kind, of_keys in sums.of_modules.items():
            table[_PHASE_OF[kind]] += _sums(self._name_of_key[: len(of_keys)], of_keys, len(self._numbers))
        return table

    def device_table(self, device: str, ns: Mapping[Slot, float]) -> FloatArray:
        """Return ns of a device as a table.

        Args:
            device: Its name.
            ns: By slot, of modules by their keys. Slots are only added, at the end.
        """
        phases, numbers = self._device_places.setdefault(device, ([], []))
        for slot in islice(ns, len(phases), None):
            phases.append(PHASES.index(slot.phase))
            numbers.append(self.number(self._named(slot.fqn)))
        table = self._empty()
        np.add.at(table, (phases, numbers), np.fromiter(ns.values(), np.float64, len(ns)))
        return table

    def unknown_table(self) -> FloatArray:
        """Return a table with 1 for unattributed work."""
        number = self.number(UNATTRIBUTED)
        table = self._empty()
        table[_OTHER, number] = 1.0
        return table

    def calls(self, counts: FloatArray) -> FloatArray:
        """Return the number of calls by column, of counts by key; NaN: unknown."""
        counted = counts.copy()
        counted[[key for key in self._wrappers if key < len(counted)]] = 0.0
        return _sums(self._name_of_key[: len(counted)], counted, len(self._numbers))

    def without_excess(self, amounts: FloatArray) -> FloatArray:
        """Limit modules with far more than similar ones: another program ran during their few calls."""
        keys = np.flatnonzero(amounts)
        kinds = self._alike[keys]
        order = np.lexsort((amounts[keys], kinds))
        ordered, sizes = amounts[keys][order], np.bincount(kinds)
        ends = np.cumsum(sizes)
        halves = [ordered[np.minimum(ends - sizes + at, len(keys) - 1)] for at in ((sizes - 1) // 2, sizes // 2)]
        limits = np.where(sizes >= MANY_SIMILAR, EXCESS_RATIO * (halves[0] + halves[1]) / 2, np.inf)
        limited = amounts.copy()
        limited[keys] = np.minimum(amounts[keys], limits[kinds])
        return limited

    def _empty(self) -> FloatArray:
        return np.zeros((len(PHASES), len(self._numbers)))

    def _named(self, fqn: str) -> str:
        key = fqn.removeprefix(KEY_MARK)
        return self.names.of(int(key)) if fqn.startswith(KEY_MARK) and key.isdecimal() else fqn

    def _place(self, kind: str, key: int) -> tuple[int, int]:
        """Return phase and column of a sum that is no module's."""
        if kind == OWN and key <= FIRST_SCOPE_KEY:
            return _OTHER, self.number(next((name for name, at in self._scopes.items() if at == key), UNATTRIBUTED))
        if kind == GRADIENT:
            return _BACKWARD, self.number(UNATTRIBUTED)
        slot = RESERVED_SLOTS.get(key, Slot(UNATTRIBUTED, "other"))
        return PHASES.index(slot.phase), self.number(slot.fqn)


def _sums(rows: IntArray, amounts: ArrayLike, length: int) -> FloatArray:
    return np.asarray(np.bincount(rows, amounts, length), dtype=np.float64)
