"""Sums that never go back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Account(Generic[K]):
    """Sums by key. What turns out to have been added too much is taken off what comes next: no counter goes back."""

    def __init__(self) -> None:
        self._sums: dict[K, float] = {}
        self._owed: dict[K, float] = defaultdict(float)

    def add(self, key: K, amount: float) -> None:
        """Add an amount; a negative one is a correction."""
        rest = amount - self._owed[key]
        self._owed[key] = max(-rest, 0.0)
        self._sums[key] = self._sums.get(key, 0.0) + max(rest, 0.0)

    def sums(self) -> dict[K, float]:
        """Return the sums; a key without any amount is not there."""
        return dict(self._sums)
