"""Who ran when: module calls, backward passes, optimizers, data loading, scopes and steps of a torch program."""

from __future__ import annotations

from torchwatt.tracing.scope import scope
from torchwatt.tracing.tracer import Tracer

__all__ = ["Tracer", "scope"]
