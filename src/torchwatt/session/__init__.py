"""`profile()`: start, stop, settle. The only place that knows all rooms."""

from __future__ import annotations

from torchwatt.session.profile import profile, scope
from torchwatt.session.run import Run

__all__ = ["Run", "profile", "scope"]
