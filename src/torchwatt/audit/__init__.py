"""Audit bundles: one schema, plain CSV files with full digits, and a reader that trusts nothing."""

from __future__ import annotations

from torchwatt.audit.reader import Bundle, read_bundle
from torchwatt.audit.schema import SCHEMA_VERSION, TABLES
from torchwatt.audit.writer import write_bundle

__all__ = ["SCHEMA_VERSION", "TABLES", "Bundle", "read_bundle", "write_bundle"]
