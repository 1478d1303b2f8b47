"""Carbon factors with source and year, and the grams computed from them; never a guessed place."""

from __future__ import annotations

from torchwatt.carbon.declared import resolve_pue
from torchwatt.carbon.impacts import impacts
from torchwatt.carbon.resolve import HOW_TO_GET_GRAMS, resolve_intensity

__all__ = ["HOW_TO_GET_GRAMS", "impacts", "resolve_intensity", "resolve_pue"]
