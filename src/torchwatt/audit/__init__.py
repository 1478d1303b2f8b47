"""Audit bundles: one schema, plain files with full digits, a seal, and checks that trust nothing.

Loaded at first use: `verify` needs the standard library only and must not import what writing needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchwatt.audit.reader import Bundle, read_bundle
    from torchwatt.audit.samples import SampleFormat
    from torchwatt.audit.schema import SCHEMA_VERSION, TABLES
    from torchwatt.audit.seal import Seal
    from torchwatt.audit.verification import Finding, Verification, verify
    from torchwatt.audit.writer import write_bundle, write_files

_HOMES = {
    "Bundle": "reader",
    "Finding": "verification",
    "SCHEMA_VERSION": "schema",
    "SampleFormat": "samples",
    "Seal": "seal",
    "TABLES": "schema",
    "Verification": "verification",
    "read_bundle": "reader",
    "verify": "verification",
    "free_name": "writer",
    "write_bundle": "writer",
    "write_files": "writer",
}
__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "Bundle",
    "Finding",
    "SampleFormat",
    "Seal",
    "Verification",
    "free_name",
    "read_bundle",
    "verify",
    "write_bundle",
    "write_files",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
