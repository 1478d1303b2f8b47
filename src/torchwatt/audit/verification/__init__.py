"""`verify`: a bundle read as a stranger would read it, its numbers computed again from each other."""

from __future__ import annotations

from torchwatt.audit.verification.finding import Finding, Verification
from torchwatt.audit.verification.verifier import verify

__all__ = ["Finding", "Verification", "verify"]
