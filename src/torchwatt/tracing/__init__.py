"""Tracing: who ran when. Importing this imports no torch; starting a `Tracer` does."""

from torchwatt.tracing.scope import Scope, scope
from torchwatt.tracing.tracer import Tracer
from torchwatt.tracing.waiting import wait_for_devices

__all__ = ["Scope", "Tracer", "scope", "wait_for_devices"]
