"""Decide which modules are counted in steps that are not traced: those that a program may or may not call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from torchwatt.tracing.registry import Registry
from torchwatt.tracing.rows import FORWARD_TASK, KEY, TASK, Row
from torchwatt.tracing.signatures import CallPattern, Signatures, affordable, nearest_called, traced_calls

STUDIED_STEPS = 64  # traced steps that are studied; later ones are studied when the trace is assembled


class Host(Protocol):
    """The attributes of the hub that are used here."""

    registry: Registry
    signatures: Signatures

    def watch(self, key: int) -> None:
        """Patch the class of a module."""


class Counting:
    """Detect in traced steps which modules are called only sometimes, and have them counted."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pattern = CallPattern()
        self._called: set[int] = set()
        self._studied = 0
        self._wanted: tuple[frozenset[int], frozenset[int]] | None = None

    def study(self, rows: Sequence[Row], steps: int, most_calls: Callable[[int], float]) -> None:
        """Evaluate traced steps that have ended.

        Args:
            rows: The rows their thread logged in them; no other thread logs.
            steps: Number of these steps.
            most_calls: Maximum number of calls per step that may pass a counting wrapper, by the number in all.
        """
        if self._studied >= STUDIED_STEPS:
            return
        self._studied += 1
        table = np.array(rows, dtype=np.int64).reshape(-1, 6)
        calls = traced_calls(table)
        self._called.update(key for call in calls for key in call.counts)
        around = nearest_called(self._host.registry.parent, self._called)
        for call in calls:
            self._pattern.add(call.counts, around)
        candidates = frozenset(self._pattern.varying), frozenset(self._host.registry.choices)
        if candidates != self._wanted and any(candidates):
            self._wanted = candidates
            forward = table[(table[:, TASK] == FORWARD_TASK) & (table[:, KEY] > 0), KEY].tolist()
            steps = max(steps, 1)
            self._count(candidates, forward, steps, most_calls(len(forward) // steps))

    def _count(
        self, candidates: tuple[frozenset[int], frozenset[int]], forward: list[int], steps: int, most_calls: float
    ) -> None:
        registry, signatures = self._host.registry, self._host.signatures
        kinds = Counter(kind for key in forward if (kind := registry.class_of(key)) is not None)
        counted = affordable(candidates, registry.class_of, {kind: n / steps for kind, n in kinds.items()}, most_calls)
        modules = {key: module for key in counted if (module := registry.module(key)) is not None}
        if modules.keys() == signatures.over:
            return
        for key in modules:
            self._host.watch(key)
        signatures.count({id(module): key for key, module in modules.items()})
