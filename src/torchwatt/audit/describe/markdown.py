"""`docs/schema.md`: the tables and columns for readers."""

from __future__ import annotations

from collections.abc import Iterator

from torchwatt.audit.schema import SCHEMA_VERSION, TABLES, Column, Table

_HEAD = f"""# The tables of a bundle

Generated from `torchwatt/audit/schema` (version {SCHEMA_VERSION}) by `make docs`; a test compares. How to check a
bundle is in [audit.md](audit.md).

A cell marked ● is never empty; any other empty cell is *unknown*, never 0. Units are UCUM. Files are UTF-8 without
BOM, `,`, LF, RFC 4180; rows are in the order of the key. Numbers have all their digits, times are UTC with
microseconds, `t_ns` counts from the start of the run. `_lo_` and `_hi_` are a 90 % interval, `_u_` a standard
uncertainty (k=1). Text that a spreadsheet could take for a formula, or that holds control characters, starts with `'`;
behind it, `\\\\` is a backslash and `\\uXXXX` a control character.
"""


def schema_markdown() -> str:
    """Return `docs/schema.md`."""
    return "\n".join([_HEAD, *(line for table in TABLES for line in _table(table))]).rstrip() + "\n"


def _table(table: Table) -> Iterator[str]:
    file = f"{table.name}.csv" if table.format == "csv" else f"{table.name}.parquet` or `{table.name}.csv.gz"
    yield f"## `{file}`"
    yield ""
    yield f"{table.description[0].upper()}{table.description[1:]}. Key: {', '.join(f'`{name}`' for name in table.key)}."
    yield ""
    yield "| column | type | unit | ● | what |"
    yield "|---|---|---|---|---|"
    for column in table.columns:
        required = "●" if column.required else ""
        yield f"| `{column.name}` | {column.type} | {_code(column.unit)} | {required} | {_what(column)} |"
    yield ""


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _what(column: Column) -> str:
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
