"""Monotonic sums by key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Account(Generic[K]):
    """Monotonic sums by key: a negative amount is deducted from later ones, so that no sum decreases."""

    def __init__(self) -> None:
        self._sums: dict[K, float] = {}
        self._owed: dict[K, float] = defaultdict(float)

    def add(self, key: K, amount: float) -> None:
        """Add an amount; a negative one corrects earlier amounts."""
        remainder = amount - self._owed[key]
        self._owed[key] = max(-remainder, 0.0)
        self._sums[key] = self._sums.get(key, 0.0) + max(remainder, 0.0)

    def sums(self) -> dict[K, float]:
        """Return the sums of all keys to which an amount was added."""
        return dict(self._sums)
