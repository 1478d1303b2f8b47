"""The rows of a live view as arrays: which module and phase each sum belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import UNATTRIBUTED, Phase, Slot
from torchwatt.tracing.device_profiler import KEY_MARK
from torchwatt.tracing.log_rows import FIRST_SCOPE_KEY
from torchwatt.tracing.module_registry import RESERVED_SLOTS, ModuleMetadata, ModuleNames
from torchwatt.tracing.tally_reader import BACKWARD, FORWARD, GRADIENT, OWN, TimeSums

MANY_SIMILAR, EXCESS_RATIO = 4, 2.0
_PHASES: Mapping[str, Phase] = {FORWARD: "forward", BACKWARD: "backward"}


class TallyRows:
    """The rows of all sums under one naming of the modules; found once, so that a look only adds arrays.

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
        self._slots: list[Slot] = []
        self._index: dict[Slot, int] = {}
        self._tuple: tuple[Slot, ...] = ()
        self._device_rows: dict[str, list[int]] = {}
        of_key = [names.of(key) for key in range(size)]
        self._of_modules = {
            kind: np.array([self._row(Slot(name, phase)) for name in of_key], dtype=np.int64)
            for kind, phase in _PHASES.items()
        }
        numbers = {name: number for number, name in enumerate(dict.fromkeys(of_key))}
        self._numbers = numbers
        uncounted = len(numbers)  # a wrapper's calls are those of the module inside it
        self._name_of_key = np.array(
            [uncounted if key in names.wrapped else numbers[name] for key, name in enumerate(of_key)], dtype=np.int64
        )
        alike: dict[object, int] = {}
        self._alike = np.array(
            [
                alike.setdefault((facts.get(key), re.sub(r"\d+", "#", name)), len(alike))
                for key, name in enumerate(of_key)
            ],
            dtype=np.int64,
        )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Return the slot of each row; the same object until there are more."""
        if len(self._tuple) != len(self._slots):
            self._tuple = tuple(self._slots)
        return self._tuple

    def amounts(self, sums: TimeSums) -> FloatArray:
        """Return divided sums by row."""
        amounts = self.of_slots((self._slot(kind, key), amount) for (kind, key), amount in sums.rest.items())
        for kind, of_keys in sums.of_modules.items():
            amounts += _sums(self._of_modules[kind][: len(of_keys)], of_keys, len(amounts))
        return amounts

    def of_slots(self, parts: Iterable[tuple[Slot, float]]) -> FloatArray:
        """Return amounts of slots by row; slots without a row get one."""
        rows, amounts = [], []
        for slot, amount in parts:
            rows.append(self._row(slot))
            amounts.append(amount)
        return _sums(np.array(rows, dtype=np.int64), amounts, len(self._slots))

    def of_device(self, device: str, ns: Mapping[Slot, float]) -> FloatArray:
        """Return ns of a device by row.

        Args:
            device: Its name.
            ns: By slot, of modules by their keys. Slots are only added, at the end.
        """
        rows = self._device_rows.setdefault(device, [])
        rows += [self._row(self._named(slot)) for slot in islice(ns, len(rows), None)]
        amounts = np.fromiter(ns.values(), np.float64, len(ns))
        return _sums(np.array(rows, dtype=np.int64), amounts, len(self._slots))

    def calls(self, counts: FloatArray) -> FloatArray:
        """Return the number of calls of the module of each row, of counts by key; NaN: unknown."""
        by_name = _sums(self._name_of_key[: len(counts)], counts, len(self._numbers) + 1)
        by_name[-1] = 0.0  # of rows that are no module
        return by_name[[self._numbers.get(slot.fqn, -1) for slot in self._slots]]

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

    def _row(self, slot: Slot) -> int:
        row = self._index.get(slot)
        if row is None:
            row = self._index[slot] = len(self._slots)
            self._slots.append(slot)
        return row

    def _named(self, slot: Slot) -> Slot:
        key = slot.fqn.removeprefix(KEY_MARK)
        named = slot.fqn.startswith(KEY_MARK) and key.isdecimal()
        return Slot(self.names.of(int(key)), slot.phase) if named else slot

    def _slot(self, kind: str, key: int) -> Slot:
        if kind == OWN and key <= FIRST_SCOPE_KEY:
            return Slot(next((name for name, at in self._scopes.items() if at == key), UNATTRIBUTED), "other")
        if kind == GRADIENT:
            return Slot(UNATTRIBUTED, "backward")
        return RESERVED_SLOTS.get(key, Slot(UNATTRIBUTED, "other"))


def _sums(rows: IntArray, amounts: ArrayLike, length: int) -> FloatArray:
    return np.asarray(np.bincount(rows, amounts, length), dtype=np.float64)
