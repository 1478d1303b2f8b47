"""Bundles to export: one run with grams of both methods, embodied figures and a counted unit."""

from tests.support.priced_bundles import bundle, factors, joules_only, unmetered

__all__ = ["bundle", "factors", "joules_only", "unmetered"]
