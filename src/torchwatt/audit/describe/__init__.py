"""Descriptions of the tables, generated from the schema: Frictionless, CSVW, Markdown."""

from __future__ import annotations

from torchwatt.audit.describe.csvw import csvw_json
from torchwatt.audit.describe.datapackage import datapackage_json
from torchwatt.audit.describe.markdown import schema_markdown

__all__ = ["csvw_json", "datapackage_json", "schema_markdown"]
