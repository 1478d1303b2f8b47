"""`datapackage.json`: the bundle for Frictionless (Data Package, Table Schema)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from torchwatt.audit.lexical import SAFE_TEXT, TIME_FORMAT
from torchwatt.audit.schema import Column, Table
from torchwatt.audit.schema.versions import CURRENT, Schema

LARGEST = 1.7976931348623157e308  # refuses INF and 1e400, which Frictionless 5.21 accepts as numbers
_TYPES = {"timestamp": "datetime"}


def datapackage_json(run_id: str, files: Mapping[str, tuple[int, str]], schema: Schema = CURRENT) -> bytes:
    """Return `datapackage.json`; `files` maps names to size in bytes and SHA-256."""
    package = {
        "name": f"torchwatt-{sha256(run_id.encode()).hexdigest()[:12]}",  # names must not have capitals or blanks
        "title": "Energy and carbon of one run, by torchwatt",
        "version": schema.version,
        "run_id": run_id,
        "resources": [_resource(table, name, *files[name]) for table, name in _present(files, schema)],
    }
    return (json.dumps(package, indent=1, ensure_ascii=True) + "\n").encode()


def _present(files: Mapping[str, tuple[int, str]], schema: Schema) -> Iterator[tuple[Table, str]]:
    for table in schema.tables:
        for name in (f"{table.name}.csv", f"{table.name}.csv.gz", f"{table.name}.parquet"):
            if name in files:
                yield table, name


def _resource(table: Table, name: str, size: int, digest: str) -> dict[str, Any]:
    common = {
        "name": table.name,
        "title": table.description,
        "path": name,
        "scheme": "file",
        "bytes": size,
        "hash": f"sha256:{digest}",
    }
    if name.endswith(".parquet"):
        # For tables Frictionless checks the size of the decoded data; for files that on the disk.
        return common | {"type": "file", "format": "parquet", "mediatype": "application/vnd.apache.parquet"}
    packed = {"compression": "gz"} if name.endswith(".gz") else {}
    dialect = {"csv": {"delimiter": ",", "lineTerminator": "\n", "quoteChar": '"', "doubleQuote": True}}
    return common | packed | {
        "type": "table",
        "format": "csv",
        "mediatype": "text/csv",
        "encoding": "utf-8",
        "dialect": dialect,
        "schema": _schema(table),
    }  # fmt: skip


def _schema(table: Table) -> dict[str, Any]:
    keys = [_foreign_key(table, column) for column in table.columns if column.refers and not column.many]
    schema: dict[str, Any] = {
        "fields": [_field(column) for column in table.columns],
        "missingValues": [""],
        "primaryKey": list(table.key),
    }
    return schema | ({"foreignKeys": keys} if keys else {})


def _foreign_key(table: Table, column: Column) -> dict[str, Any]:
    table_name, _, field = column.refers.partition(".")
    resource = "" if table_name == table.name else table_name
    return {"fields": [column.name], "reference": {"resource": resource, "fields": [field]}}


def _field(column: Column) -> dict[str, Any]:
    field: dict[str, Any] = {
        "name": column.name,
        "type": _TYPES.get(column.type, column.type),
        "description": column.description,
    }
    if column.unit:
        field["unit"] = column.unit
    if column.derived:
        field["derived"] = column.derived
    if column.type == "timestamp":
        field["format"] = TIME_FORMAT  # the format `default` accepts times without a zone
    if column.type == "boolean":
        field |= {"trueValues": ["true"], "falseValues": ["false"]}
    return field | {"constraints": _constraints(column)}


def _constraints(column: Column) -> dict[str, Any]:
    constraints: dict[str, Any] = {"required": True} if column.required else {}
    if column.type == "string" and column.values and not column.many:
        return constraints | {"enum": list(column.values)}
    if column.type == "string":
        return constraints | {"pattern": SAFE_TEXT}
    if column.type == "number":
        return constraints | {
            "minimum": -LARGEST if column.minimum is None else column.minimum,
            "maximum": LARGEST if column.maximum is None else column.maximum,
        }
    return constraints | ({"minimum": column.minimum} if column.minimum is not None else {})
