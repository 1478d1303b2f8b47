"""The callback of codecarbon's that transformers may have added by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# transformers adds it where codecarbon is installed and `report_to` is "all": its default before version 5. It is
# told by its name: importing `transformers.integrations` costs seconds, and it may be a subclass.
NAME = "CodeCarbonCallback"

EXPLAINED = (
    'transformers runs its CodeCarbonCallback as well (report_to="all" adds it because codecarbon is installed): it '
    'meters the same devices, so do not add its figures to these; report_to="none" or '
    "trainer.remove_callback(CodeCarbonCallback) turns it off"
)


def runs_beside(callbacks: Iterable[Any]) -> bool:
    """Return whether codecarbon's callback is among a trainer's."""
    return any(kind.__name__ == NAME for callback in callbacks for kind in type(callback).__mro__)
