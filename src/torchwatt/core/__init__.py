"""Immutable values that pass between rooms; standard library and numpy only."""
