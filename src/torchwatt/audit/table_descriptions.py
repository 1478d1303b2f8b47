"""`datapackage.json`: the bundle for Frictionless (Data Package, Table Schema)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from typing import Any

from torchwatt.audit.cell_codec import SAFE_TEXT, TIME_FORMAT, TIME_PATTERN
from torchwatt.audit.schema import SCHEMA_VERSION, TABLES, Column, Table
from torchwatt.audit.schema.schema_versions import CURRENT, Schema

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
    keys = [_package_foreign_key(table, column) for column in table.columns if column.refers and not column.many]
    schema: dict[str, Any] = {
        "fields": [_field(column) for column in table.columns],
        "missingValues": [""],
        "primaryKey": list(table.key),
    }
    return schema | ({"foreignKeys": keys} if keys else {})


def _package_foreign_key(table: Table, column: Column) -> dict[str, Any]:
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


def csvw_json(files: Collection[str] = (), schema: Schema = CURRENT) -> bytes:
    """Return `csvw-metadata.json`, which depends only on the version and on which optional tables `files` has."""
    description = {
        "@context": ["http://www.w3.org/ns/csvw", {"@language": "en"}],
        "dc:title": f"Energy and carbon of one run, by torchwatt; schema {schema.version}",
        "dialect": {"delimiter": ",", "encoding": "utf-8", "lineTerminators": ["\n"], "header": True},
        "tables": [
            _csvw_table(table)
            for table in schema.tables
            if table.format == "csv" and (not table.optional or f"{table.name}.csv" in files)
        ],
    }
    return (json.dumps(description, indent=1, ensure_ascii=True) + "\n").encode()


def _csvw_table(table: Table) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "columns": [_csvw_column(column) for column in table.columns],
        "primaryKey": list(table.key),
    }
    # The validator csvw 4.1 reports empty cells as broken keys: Frictionless and verify check optional keys.
    keys = [_csvw_foreign_key(column) for column in table.columns if column.refers and (column.required or column.many)]
    return {
        "url": f"{table.name}.csv",
        "dc:description": table.description,
        "tableSchema": schema | ({"foreignKeys": keys} if keys else {}),
    }


def _csvw_foreign_key(column: Column) -> dict[str, Any]:
    table, _, name = column.refers.partition(".")
    return {"columnReference": column.name, "reference": {"resource": f"{table}.csv", "columnReference": name}}


def _csvw_column(column: Column) -> dict[str, Any]:
    description: dict[str, Any] = {
        "name": column.name,
        "titles": column.name,
        "dc:description": f"{column.description} [{column.unit}]" if column.unit else column.description,
        "datatype": _csvw_datatype(column),
        "required": column.required,
    }
    return description | ({"separator": ";"} if column.many else {})


def _csvw_datatype(column: Column) -> dict[str, Any]:
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


_MARKDOWN_HEAD = f"""# The tables of a bundle

Generated from `torchwatt/audit/schema` (version {SCHEMA_VERSION}) by `make docs`; a test compares. How to check a
bundle is in [audit.md](audit.md).

A cell marked ● is never empty; any other empty cell is *unknown*, never 0. Units are UCUM. Files are UTF-8 without
BOM, `,`, LF, RFC 4180; rows are in the order of the key. Numbers have all their digits, times are UTC with
microseconds, `t_ns` counts from the start of the run. Text that a spreadsheet
could take for a formula, or that holds control characters, starts with `'`; behind it, `\\\\` is a backslash and
`\\uXXXX` a control character.

Uncertainties: `_lo_j` and `_hi_j` are the 90 % interval of what another repeat of the run would give;
`_systematic_lo_j` and `_systematic_hi_j` that of what another meter would say of this run. `lo` and `hi` of a factor
are its source's 90 % interval, or two sources; of an impact they follow from the meters' band and the factors' `lo`
and `hi`. `_u_` is a standard uncertainty (k=1).
"""
# What the page says of a table beside its columns, whose descriptions are a part of every bundle.
_MARKDOWN_NOTES = {
    "layer": """`method` is one of:

- `fit`: watts of all rows were solved for, from the readings of the meter ([attribution.md](attribution.md));
- `time_share`: the meter's joules were shared by time, and `how_known` of the device says why; also a sum over ranks
  whose methods differ;
- `load_model`: the device is modelled, and the model's joules are shared by time;
- `counter`, `power_integral`: the row was not split and has the method of its device, as where no kernels were
  recorded, in time that no trace covers, and on a card that only others used.

`replay` is reserved and never written. `carried_share` is the part of the time that was filled in from traced steps
([steps.md](steps.md)); screens call it \"extrapolated\". `measured_share` is 1 - Var(posterior)/Var(prior) of a fitted
row. `device_energy_j` in a formula is `energy_j` of the row's device in `device.csv`.""",
}


def schema_markdown() -> str:
    """Return `docs/schema.md`."""
    return "\n".join([_MARKDOWN_HEAD, *(line for table in TABLES for line in _markdown_table(table))]).rstrip() + "\n"


def _markdown_table(table: Table) -> Iterator[str]:
    file = f"{table.name}.csv" if table.format == "csv" else f"{table.name}.parquet` or `{table.name}.csv.gz"
    yield f"## `{file}`"
    yield ""
    yield f"{table.description[0].upper()}{table.description[1:]}. Key: {', '.join(f'`{name}`' for name in table.key)}."
    yield ""
    if note := _MARKDOWN_NOTES.get(table.name):
        yield note
        yield ""
    yield "| column | type | unit | ● | what |"
    yield "|---|---|---|---|---|"
    for column in table.columns:
        required = "●" if column.required else ""
        yield f"| `{column.name}` | {column.type} | {_code(column.unit)} | {required} | {_column_words(column)} |"
    yield ""


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _column_words(column: Column) -> str:
    words = [column.description.replace("|", "\\|")]
    if column.many and ";-list" not in column.description:
        words.append("`;`-list")
    if column.values:
        words.append("one of " + ", ".join(f"`{value}`" for value in column.values))
    if column.minimum is not None:
        words.append(f"at least {column.minimum:g}")
    if column.maximum is not None:
        words.append(f"at most {column.maximum:g}")
    if column.refers:
        words.append(f"found in `{column.refers}`")
    if column.derived:
        words.append(f"= `{column.derived}`")
    return "; ".join(words)


__all__ = ["csvw_json", "datapackage_json", "schema_markdown"]
