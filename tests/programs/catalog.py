"""All programs, by name."""

from tests.programs import attacks, routing, sizes, transformers, updates
from tests.programs.truth import PROGRAMS

__all__ = ["PROGRAMS", "attacks", "routing", "sizes", "transformers", "updates"]
