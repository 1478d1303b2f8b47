"""All programs, by name."""

from tests.programs import attacks, compiled, everyday, routing, sizes, transformers, updates
from tests.programs.truth import PROGRAMS

__all__ = ["PROGRAMS", "attacks", "compiled", "everyday", "routing", "sizes", "transformers", "updates"]
