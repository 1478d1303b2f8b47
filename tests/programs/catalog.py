"""All programs, by name."""

from tests.programs import attacks, everyday, routing, sizes, transformers, updates
from tests.programs.truth import PROGRAMS

__all__ = ["PROGRAMS", "attacks", "everyday", "routing", "sizes", "transformers", "updates"]
