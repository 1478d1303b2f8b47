"""`profile()`: starts, stops and reports sessions. The only package that imports all others."""

from __future__ import annotations

from torchwatt.session.profile import profile, scope, stage
from torchwatt.session.run import Run

__all__ = ["Run", "profile", "scope", "stage"]
