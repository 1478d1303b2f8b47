"""Tracing: who ran when. Importing this imports no torch; starting a `Tracer` does."""

from torchwatt.tracing.scope import Scope, scope
from torchwatt.tracing.tracer import Tracer

__all__ = ["Scope", "Tracer", "scope"]
