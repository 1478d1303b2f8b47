"""Text for terminals and Markdown: no control characters, ASCII for what a stream cannot encode; nothing raises."""

from __future__ import annotations

import codecs
import locale
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

PLAIN_ERRORS = "torchwatt.plain"  # name of the error handler, as in `stream.reconfigure(errors=PLAIN_ERRORS)`
ASCII_FOR = {
    "·": "|", "—": "-", "–": "-", "−": "-", "…": "...", "±": "+/-", "×": "x", "µ": "u", "μ": "u", "≤": "<=", "≥": ">=",
    "→": "->", "²": "2", "₂": "2", "°": "deg", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ",
    "●": "m", "◆": "d", "◐": "a", "■": "s", "○": "o", "◇": "u", "□": "x",
}  # fmt: skip

DASH = "—"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(map(_ascii, lacking)), error.end


def _ascii(char: str) -> str:
    return ASCII_FOR.get(char) or char.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(PLAIN_ERRORS, _replace)


def to_encodable(text: str, encoding: str | None) -> str:
    """Return a text with ASCII for characters that an encoding lacks; unchanged if the encoding is unknown."""
    try:
        return text.encode(encoding or "utf-8", PLAIN_ERRORS).decode(encoding or "utf-8")
    except LookupError:
        return text


def to_printable(text: str) -> str:
    """Return a text that stdout and the locale's encoding can represent."""
    if text.isascii():
        return text
    in_files = locale.getpreferredencoding(do_setlocale=False)
    return to_encodable(to_encodable(text, getattr(sys.stdout, "encoding", None)), in_files)


def escape_unprintable(text: str) -> str:
    """Escape all characters of an untrusted text that are not printable, such as escape sequences and line ends."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def escape_unprintable_lines(text: str) -> str:
    """Escape all characters of an untrusted text that are not printable, except line ends."""
    return "\n".join(map(escape_unprintable, text.split("\n")))


def replace_unencodable(stream: Any) -> None:
    """Make a text stream replace characters that it cannot encode; other streams stay unchanged."""
    if hasattr(stream, "reconfigure") and getattr(stream, "errors", None) == "strict":
        stream.reconfigure(errors=PLAIN_ERRORS)


def escape_markdown(text: str) -> str:
    """Return untrusted text on one line with Markdown syntax escaped; a dash if empty."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())) or DASH


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; cells must already be escaped by `escape_markdown`."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(' --- ' for _ in header)}|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
