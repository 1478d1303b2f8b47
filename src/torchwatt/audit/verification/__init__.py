"""`verify`: a bundle read as a stranger would read it, every number computed again."""

from __future__ import annotations

from torchwatt.audit.verification.check import verify
from torchwatt.audit.verification.finding import Finding, Verification

__all__ = ["Finding", "Verification", "verify"]
