"""Cells that are computed from their row are computed again, as the schema says."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose, isfinite

from torchwatt.audit.formula import Formula, names, parse
from torchwatt.audit.schema import Table, Value
from torchwatt.audit.verification.cells import Piece
from torchwatt.audit.verification.finding import Findings

# The same operations on the same digits give the same digits; this leaves room for another program's order of them.
REL = 1e-12


def same(expected: float, found: float, *, rel: float = REL, scale: float = 0.0) -> bool:
    """Compare two numbers; `scale` is the size of what was subtracted to get them, if anything was."""
    return isclose(expected, found, rel_tol=rel, abs_tol=rel * abs(scale))


class Derived:
    """Checks the derived columns of one table."""

    def __init__(self, table: Table, file: str, findings: Findings) -> None:
        self.file = file
        self.findings = findings
        self.columns = [(c.name, c.derived, names(c.derived), parse(c.derived)) for c in table.columns if c.derived]

    def look(self, piece: Piece, extra: Mapping[str, list[float | None]] | None = None) -> None:
        """Check one piece; `extra` are columns of other tables, row by row."""
        for column, text, wanted, formula in self.columns:
            inputs = [extra[name] if extra and name in extra else piece.numbers(name) for name in wanted]
            cells = piece.numbers(column)
            ratio = text == "/".join(wanted)  # most columns: told by one division whether there is more to look at
            for row, cell, values in zip(piece.rows, cells, zip(*inputs, strict=True), strict=True):
                if cell is None and None in values:
                    continue
                if ratio and cell is not None and len(values) == 2:
                    over, under = values
                    if over is not None and under and over / under == cell:
                        continue
                expected = _value(formula, wanted, values)
                if _agree(expected, cell, values if "-" in text else ()) or row in piece.bad:
                    continue
                self.findings.add(
                    "DERIVED", self.file, f"is not {text}", row=row, column=column,
                    expected="nothing" if expected is None else expected, found=cell,
                )  # fmt: skip


def _value(formula: Formula, wanted: tuple[str, ...], values: tuple[Value, ...]) -> float | None:
    """Evaluate; None where an input is missing, or where it cannot be said (a division by 0)."""
    if None in values:
        return None
    try:
        value = formula(dict(zip(wanted, values, strict=True)))  # type: ignore[arg-type]  # no None in it
    except (ZeroDivisionError, OverflowError):
        return None
    return value if isfinite(value) else None


def _agree(expected: float | None, found: float | None, subtracted: tuple[Value, ...]) -> bool:
    if expected is None or found is None:
        return expected is found
    if expected == found:
        return True
    # A difference has the error of what it is made of; integers have none.
    return same(expected, found, scale=max((abs(v) for v in subtracted if isinstance(v, float)), default=0.0))
