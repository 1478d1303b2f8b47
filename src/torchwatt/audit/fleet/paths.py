"""Where a part lies in the lake: anybody's names become folders and files that stay where they belong."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote, unquote

from torchwatt.core.errors import ConfigError

SUFFIX = ".parquet"
# A name in a folder has 255 bytes at most; `project=`, `part-` and the suffix take their own.
LONGEST = 200
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def encoded(name: str) -> str:
    """Write any text as one part of a path, as Hive does: percent-encoded, decoded again by every engine.

    Raises:
        ConfigError: It is empty, too long for a file's name, or the one name that engines read as "no value".
    """
    if name == _HIVE_NULL:
        raise ConfigError(f"{name}: engines read this name as no name at all: give another")
    text = quote(name, safe="", errors="surrogatepass")
    if not 0 < len(text) <= LONGEST:
        raise ConfigError(f"{name[:40]!r}: a name in the lake has 1 to {LONGEST} characters, percent-encoded")
    return text


def decoded(text: str) -> str:
    """Read back what `encoded` wrote."""
    return unquote(text, errors="surrogatepass")


def part(table: str, project: str, started_at: datetime, run_id: str) -> str:
    """Return the path of a run's part of a table, relative to the lake; the date is that of UTC."""
    day = f"{started_at.astimezone(UTC):%Y-%m-%d}"
    return f"{table}/project={encoded(project)}/date={day}/part-{encoded(run_id)}{SUFFIX}"


def run_of(path: str) -> tuple[str, str]:
    """Return the project and the run that a part belongs to."""
    _, project, _, name = path.split("/")
    return decoded(project.removeprefix("project=")), decoded(name.removeprefix("part-").removesuffix(SUFFIX))
