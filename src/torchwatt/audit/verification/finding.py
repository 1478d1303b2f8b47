"""The result of verify: findings that name file, row and column, the seal, and what was not checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torchwatt.core.plain_text import escape_unprintable, to_printable

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
MAX_FINDINGS = 1000  # findings that are kept; more are counted


@dataclass(frozen=True, slots=True)
class Finding:
    """One contradiction; `row` counts from 1 without the header."""

    code: Code
    file: str
    row: int | None
    column: str
    expected: str
    found: str
    reason: str

    def __str__(self) -> str:
        place = escape_unprintable(self.file)
        place += f" row {self.row}" if self.row is not None else ""
        place += f" column {escape_unprintable(self.column)}" if self.column else ""
        line = f"{self.code} {place}: {escape_unprintable(self.reason[:LONGEST_REASON])}"
        if self.expected or self.found:
            line += f"; expected {_shorten(self.expected)}, found {_shorten(self.found)}"
        return to_printable(line)


def _shorten(text: str) -> str:
    return (escape_unprintable(text[:LONGEST]) or "nothing") + ("…" if len(text) > LONGEST else "")


@dataclass(slots=True)
class Findings:
    """Collects findings in the order in which they are met."""

    listed: list[Finding] = field(default_factory=list)
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
        if len(self.listed) < MAX_FINDINGS:
            self.listed.append(Finding(code, str(file), row, column, _text(expected), _text(found), reason))


def _text(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


SEAL_CODES = frozenset({"CHAIN", "SIGNATURE"})
BEYOND_CHECKS = ("that the meter told the truth, that the run is the one that is claimed, and what its user declared",)


@dataclass(frozen=True, slots=True)
class SealStatus:
    """By whom a bundle is sealed, as far as it was checked."""

    key: str = ""  # fingerprint of the key whose signature is good; "" without one
    signer: str = ""  # whose key that is, by the file of allowed signers
    required: bool = False  # it is the key that was required
    chain: str = ""  # the name of the chain that has a line for it
    place: int = 0  # of that line, from 1
    length: int = 0  # of the chain
    head: str = ""  # the last hash of the chain, to be kept where others see it
    states_chain: bool = False  # the statement names a chain that was not given

    @property
    def signature_text(self) -> str:
        """Return the text about the signature."""
        if not self.key:
            return "unsigned: anyone could have made it"
        unknown = ", as required" if self.required else ", whose it is was not checked"
        return f"signed by the key {self.key}" + (f" of {self.signer}" if self.signer else unknown)

    @property
    def chain_text(self) -> str:
        """Return the text about the chain and the place in it."""
        if self.chain:
            return f"in chain {self.chain} at place {self.place} of {self.length}"
        return "in a chain that was not given" if self.states_chain else "in no chain"

    def list_unseen(self) -> Iterator[str]:
        """Yield what no check can show because the seal lacks a signature or a chain."""
        if not self.key:
            yield "who made it: whoever writes all of its files anew can say other joules in every one of them"
        if not self.chain:
            yield "whether other runs were left out"
        else:
            yield "whether runs were cut off the chain's end, unless its head is kept elsewhere: --require-chain HEAD"


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`, in three parts: contents (consistent or not), seal, and what no check can show.

    It is consistent if no finding is about its contents. A signature or a chain that is broken, or that was required
    and is not there, is a finding as well, and the result is not `ok`. `notes` say what was not checked.
    """

    directory: str
    findings: tuple[Finding, ...]
    count: int  # of all findings, also of those that were not kept
    notes: tuple[str, ...]
    rows: dict[str, int]  # checked, by file
    sealing: SealStatus = SealStatus()
    unseen: tuple[str, ...] = BEYOND_CHECKS

    @property
    def ok(self) -> bool:
        """Return whether it is consistent, and sealed as far as that was required."""
        return self.count == 0

    @property
    def consistent(self) -> bool:
        """Return whether its contents agree with each other, whoever sealed them."""
        return all(finding.code in SEAL_CODES for finding in self.findings)

    @property
    def verdict(self) -> str:
        """Return the first two parts in one line."""
        contents = "consistent" if self.consistent else "NOT consistent"
        return f"{contents}; {'; '.join(self._describe_seal())}"

    def _describe_seal(self) -> Iterator[str]:
        yield self.sealing.signature_text
        if self.sealing.chain or self.sealing.states_chain:
            yield self.sealing.chain_text
        broken = sorted({finding.code.lower() for finding in self.findings if finding.code in SEAL_CODES})
        if broken:
            yield f"the {' and the '.join(broken)} asked for is not good"

    def lines(self) -> Iterator[str]:
        """Yield the report, a line each."""
        yield f"{escape_unprintable(self.directory)}: {sum(self.rows.values())} rows in {len(self.rows)} tables"
        yield from (f"  {finding}" for finding in self.findings)
        if self.count > len(self.findings):
            yield f"  and {self.count - len(self.findings)} more findings"
        yield from (f"  note: {escape_unprintable(note)}" for note in self.notes)
        kinds = Counter(finding.code for finding in self.findings)
        counts = ", ".join(f"{n} {code}" for code, n in kinds.items())
        contradicts = f"NOT consistent: {self.count} findings ({counts})"
        yield f"contents: {'consistent' if self.consistent else contradicts}"
        yield f"seal: {self.sealing.signature_text}; {self.sealing.chain_text}"
        if self.sealing.head:
            yield f"head of {self.sealing.chain}, to be kept where others see it: {self.sealing.head}"
        yield from (f"no check shows: {limit}" for limit in self.unseen)
        yield f"{escape_unprintable(self.directory)}: {self.verdict}"

    def __str__(self) -> str:
        return to_printable("\n".join(self.lines()))
