"""Formats text, numbers and tables of the Markdown reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

DASH = "—"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def plain(text: str) -> str:
    """Return untrusted text on one line with Markdown syntax escaped; a dash if empty."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())) or DASH


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant figures and no exponent; a dash if unknown."""
    return DASH if value is None else format(Decimal(f"{value:.{digits}g}"), "f")


def between(lo: float | None, hi: float | None) -> str:
    """Return an interval; a dash if unknown."""
    return DASH if lo is None or hi is None else f"{figure(lo)} to {figure(hi)}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; cells must already be escaped by `plain`."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(' --- ' for _ in header)}|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
