"""Exports are tested with one source of factors, whatever is installed."""

from tests.support.priced_bundles import one_source

__all__ = ["one_source"]
