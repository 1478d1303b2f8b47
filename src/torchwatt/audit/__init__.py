"""Audit bundles: schema, writer, reader, seal and verification, exports, the store of runs and the lake of many runs.

Modules are imported at first use: `verify` needs only the standard library, and must not import NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchwatt.audit.bundle import Bundle, read_bundle
    from torchwatt.audit.bundle_writer import write_bundle, write_files
    from torchwatt.audit.sample_table import SampleFormat
    from torchwatt.audit.schema import SCHEMA_VERSION, TABLES
    from torchwatt.audit.seal import Seal
    from torchwatt.audit.verification import Finding, Verification, verify

_HOMES = {
    "Bundle": "torchwatt.audit.bundle",
    "Finding": "torchwatt.audit.verification",
    "SCHEMA_VERSION": "torchwatt.audit.schema",
    "SampleFormat": "torchwatt.audit.sample_table",
    "Seal": "torchwatt.audit.seal",
    "TABLES": "torchwatt.audit.schema",
    "Verification": "torchwatt.audit.verification",
    "read_bundle": "torchwatt.audit.bundle",
    "verify": "torchwatt.audit.verification",
    "free_name": "torchwatt.audit.bundle_writer",
    "write_bundle": "torchwatt.audit.bundle_writer",
    "write_files": "torchwatt.audit.bundle_writer",
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

    return getattr(import_module(home), name)
