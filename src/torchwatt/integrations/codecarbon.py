"""Detects the CodeCarbon callback that transformers adds automatically."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# transformers adds it if codecarbon is installed and `report_to` is "all", the default before version 5. Matched by
# class name, subclasses included, because importing `transformers.integrations` takes seconds.
NAME = "CodeCarbonCallback"

EXPLAINED = (
    'transformers runs its CodeCarbonCallback as well (report_to="all" adds it because codecarbon is installed): it '
    'meters the same devices, so do not add its figures to these; report_to="none" or '
    "trainer.remove_callback(CodeCarbonCallback) turns it off"
)


def runs_beside(callbacks: Iterable[Any]) -> bool:
    """Return whether a trainer's callbacks include codecarbon's."""
    return any(kind.__name__ == NAME for callback in callbacks for kind in type(callback).__mro__)
