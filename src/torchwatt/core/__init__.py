"""Immutable values that pass between packages; standard library and numpy only."""
