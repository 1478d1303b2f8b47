"""Immutable values that pass between packages; standard library and numpy only."""

__version__ = "0.1.0"  # a test compares it with the project file
