"""All programs, by name."""

from tests.programs import (
    attacks,
    attention,
    chance,
    compiled,
    everyday,
    libraries,
    recipes,
    routing,
    several,
    sizes,
    updates,
)
from tests.programs.truth import PROGRAMS

__all__ = [
    "PROGRAMS",
    "attacks",
    "attention",
    "chance",
    "compiled",
    "everyday",
    "libraries",
    "recipes",
    "routing",
    "several",
    "sizes",
    "updates",
]
