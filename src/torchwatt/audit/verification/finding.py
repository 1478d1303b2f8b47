"""What verify says: findings that name file, row and column, and what could not be checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torchwatt.core.plain_text import printable, printable_here

Code = Literal[
    "FILE",  # missing, or not what the manifest says
    "HASH",  # bytes differ from the manifest
    "DESCRIPTION",  # datapackage.json, csvw-metadata.json or statement.json do not describe these files
    "FORM",  # not UTF-8, not LF, another header, a row of another length
    "CELL",  # not written as the column's type, out of range, not an allowed word
    "LAW",  # well written and impossible: outside its own interval, its run, its word
    "KEY",  # two rows for one key, or rows out of order
    "REFERENCE",  # names a row that is not there
    "SUM",  # parts do not add up
    "DERIVED",  # recomputed to something else
    "FORMULA",  # an impact's formula gives another number, or none
    "KNOWN",  # better known than its inputs
    "SAMPLE",  # the curve and the tables disagree
    "CHAIN",
    "SIGNATURE",
]
LONGEST = 120  # characters of a cell that are shown
LONGEST_REASON = 2000  # characters
MOST = 1000  # findings that are kept; more are counted


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `row` counts from 1 without the header."""

    code: Code
    file: str
    row: int | None
    column: str
    expected: str
    found: str
    reason: str

    def __str__(self) -> str:
        place = printable(self.file)
        place += f" row {self.row}" if self.row is not None else ""
        place += f" column {printable(self.column)}" if self.column else ""
        said = f"{self.code} {place}: {printable(self.reason[:LONGEST_REASON])}"
        if self.expected or self.found:
            said += f"; expected {_shown(self.expected)}, found {_shown(self.found)}"
        return printable_here(said)


def _shown(text: str) -> str:
    return (printable(text[:LONGEST]) or "nothing") + ("…" if len(text) > LONGEST else "")


@dataclass(slots=True)
class Findings:
    """Collects findings in the order in which they are met."""

    kept: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    count: int = 0
    unreadable: int = 0  # of them, cells and forms: what depends on them is not computed

    def add(
        self, code: Code, file: str, reason: str, *, row: int | None = None, column: str = "",
        expected: object = "", found: object = "",
    ) -> None:  # fmt: skip
        """Add one; past the first thousand they are only counted."""
        self.count += 1
        self.unreadable += code in {"FORM", "CELL"}
        if len(self.kept) < MOST:
            self.kept.append(Finding(code, str(file), row, column, _text(expected), _text(found), reason))


def _text(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`: nothing is wrong if `findings` is empty; `notes` say what was not checked."""

    directory: str
    findings: tuple[Finding, ...]
    count: int  # of all findings, also of those that were not kept
    notes: tuple[str, ...]
    rows: dict[str, int]  # checked, by file

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return self.count == 0

    def lines(self) -> Iterator[str]:
        """Yield the report, a line each."""
        yield f"{printable(self.directory)}: {sum(self.rows.values())} rows in {len(self.rows)} tables"
        yield from (f"  {finding}" for finding in self.findings)
        if self.count > len(self.findings):
            yield f"  and {self.count - len(self.findings)} more findings"
        yield from (f"  note: {printable(note)}" for note in self.notes)
        kinds = Counter(finding.code for finding in self.findings)
        told = ", ".join(f"{n} {code}" for code, n in kinds.items())
        yield f"OK: {printable(self.directory)}" if self.ok else f"NOT OK: {self.count} findings ({told})"

    def __str__(self) -> str:
        return printable_here("\n".join(self.lines()))
