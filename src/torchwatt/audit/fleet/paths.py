"""Paths of parts in a lake; untrusted names are percent-encoded, so that no path leads out of the lake."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote, unquote

from torchwatt.core.errors import ConfigError

SUFFIX = ".parquet"
# File systems allow names of 255 bytes, including `project=`, `part-` and the suffix.
LONGEST = 200
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def encoded(name: str) -> str:
    """Percent-encode text as one part of a path, as Hive does; query engines decode it.

    Raises:
        ConfigError: It is empty, too long for a file name, or the name that query engines read as null.
    """
    if name == _HIVE_NULL:
        raise ConfigError(f"{name}: query engines read this name as a missing one: give another")
    text = quote(name, safe="", errors="surrogatepass")
    if not 0 < len(text) <= LONGEST:
        raise ConfigError(f"{name[:40]!r}: a name in the lake has 1 to {LONGEST} characters, percent-encoded")
    return text


def decoded(text: str) -> str:
    """Decode the result of `encoded`."""
    return unquote(text, errors="surrogatepass")


def part(table: str, project: str, started_at: datetime, run_id: str) -> str:
    """Return the path of the part of a table with the rows of a run, relative to the lake; the date is in UTC."""
    day = f"{started_at.astimezone(UTC):%Y-%m-%d}"
    return f"{table}/project={encoded(project)}/date={day}/part-{encoded(run_id)}{SUFFIX}"


def run_of(path: str) -> tuple[str, str]:
    """Return the project and the run id of the path of a part."""
    _, project, _, name = path.split("/")
    return decoded(project.removeprefix("project=")), decoded(name.removeprefix("part-").removesuffix(SUFFIX))
