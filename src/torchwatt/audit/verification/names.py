"""Names that look like a reserved one and are not: other alphabets, spaces, capitals, invisible characters."""

from __future__ import annotations

import unicodedata
from functools import cache

from torchwatt.core.terms import RESERVED, ROOT

# Letters of other alphabets that look like those of reserved names (Unicode TR 39, confusables).
_LIKE = str.maketrans(
    "\u0430\u0441\u0501\u0435\u0456\u043e\u0440\u0455\u0442\u043c\u0445\u0443"
    "\u03b1\u03b5\u03b9\u03bf\u03c1\u03c4\u03bc\u0131\u0261\u217c\u01c0",
    "acdeiopstmxyaeioptmigll",
)
_ASCII_BRACKETS = frozenset("()[]{}")
_BRACKETS = frozenset("()[]{}\u2768\u2769\u207d\u207e\u208d\u208e\u27ee\u27ef\uff5f\uff60")


@cache
def _reserved() -> dict[str, str]:
    return {_letters(name): name for name in (*RESERVED, ROOT)}


def looks_like(name: str) -> str:
    """Return the reserved name that a name could be taken for; "" where it is one, or looks like none."""
    if name.isascii() and not (_ASCII_BRACKETS & set(name)):
        return ""
    if name in RESERVED or name == ROOT:
        return ""
    plain = unicodedata.normalize("NFKC", name)
    if not (_BRACKETS & {*plain, *name}):
        return ""
    return _reserved().get(_letters(plain), "")


def _letters(name: str) -> str:
    """Return the letters alone, small and Latin."""
    small = unicodedata.normalize("NFKD", name).casefold().translate(_LIKE)
    return "".join(char for char in small if char.isalpha())
