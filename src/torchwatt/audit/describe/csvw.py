"""`csvw-metadata.json`: the CSV tables for W3C's CSV on the Web."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from torchwatt.audit.lexical import SAFE_TEXT, TIME_PATTERN
from torchwatt.audit.schema import Column, Table
from torchwatt.audit.schema.versions import CURRENT, Schema


def csvw_json(files: Collection[str] = (), schema: Schema = CURRENT) -> bytes:
    """Return `csvw-metadata.json`, which depends only on the version and on which optional tables `files` has."""
    description = {
        "@context": ["http://www.w3.org/ns/csvw", {"@language": "en"}],
        "dc:title": f"Energy and carbon of one run, by torchwatt; schema {schema.version}",
        "dialect": {"delimiter": ",", "encoding": "utf-8", "lineTerminators": ["\n"], "header": True},
        "tables": [
            _table(table)
            for table in schema.tables
            if table.format == "csv" and (not table.optional or f"{table.name}.csv" in files)
        ],
    }
    return (json.dumps(description, indent=1, ensure_ascii=True) + "\n").encode()


def _table(table: Table) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "columns": [_column(column) for column in table.columns],
        "primaryKey": list(table.key),
    }
    # The validator csvw 4.1 reports empty cells as broken keys: Frictionless and verify check optional keys.
    keys = [_foreign_key(column) for column in table.columns if column.refers and (column.required or column.many)]
    return {
        "url": f"{table.name}.csv",
        "dc:description": table.description,
        "tableSchema": schema | ({"foreignKeys": keys} if keys else {}),
    }


def _foreign_key(column: Column) -> dict[str, Any]:
    table, _, name = column.refers.partition(".")
    return {"columnReference": column.name, "reference": {"resource": f"{table}.csv", "columnReference": name}}


def _column(column: Column) -> dict[str, Any]:
    description: dict[str, Any] = {
        "name": column.name,
        "titles": column.name,
        "dc:description": f"{column.description} [{column.unit}]" if column.unit else column.description,
        "datatype": _datatype(column),
        "required": column.required,
    }
    return description | ({"separator": ";"} if column.many else {})


def _datatype(column: Column) -> dict[str, Any]:
    if column.type == "string":
        return {"base": "string", "format": "|".join(column.values) if column.values else SAFE_TEXT}
    if column.type == "timestamp":
        return {"base": "string", "format": TIME_PATTERN}  # csvw 4.1 does not enforce dateTimeStamp
    if column.type == "boolean":
        return {"base": "boolean", "format": "true|false"}
    datatype: dict[str, Any] = {"base": "integer" if column.type == "integer" else "double"}
    if column.minimum is not None:
        datatype["minimum"] = column.minimum
    if column.maximum is not None:
        datatype["maximum"] = column.maximum
    return datatype
