"""Keys and references, over rows that come in pieces: sorted rows need only their neighbour."""

from __future__ import annotations

from collections.abc import Mapping
from operator import lt

from torchwatt.audit.schema import Table, Value
from torchwatt.audit.table import sortable
from torchwatt.audit.verification.cells import Piece
from torchwatt.audit.verification.finding import Findings

Known = Mapping[str, frozenset[Value]]  # "device.device_id" -> its values


class Keys:
    """Checks that rows are in the order of the key, each key once, and that what they name exists."""

    def __init__(self, table: Table, file: str, known: Known, findings: Findings) -> None:
        self.table = table
        self.file = file
        self.known = known
        self.findings = findings
        self.last: tuple[Value, ...] | None = None
        self.required = [table.column(name).required for name in table.key]
        self.refers = [column for column in table.columns if column.refers]

    def look(self, piece: Piece) -> None:
        """Check one piece."""
        self._order(piece)
        self.references(piece)

    def references(self, piece: Piece) -> None:
        """Check that what the rows name exists, as far as it is known by now."""
        for column in self.refers:
            known = self.known.get(column.refers)
            if known is None:
                continue
            values = piece.columns[column.name]
            for value in set(values) - known - {None}:
                self._reference(piece, column.name, column.refers, value, known, many=column.many)

    def _order(self, piece: Piece) -> None:
        keys = list(zip(*(piece.columns[name] for name in self.table.key), strict=True))
        last = self.last
        if _rising(keys) and (last is None or not keys or _before(last, keys[0])):
            self.last = keys[-1] if keys else last
            return
        for row, key in zip(piece.rows, keys, strict=True):
            if any(value is None for value, required in zip(key, self.required, strict=True) if required):
                continue
            if last is not None and not _before(last, key):
                self._tell(row, key, same=last == key)
            last = key
        self.last = last

    def _tell(self, row: int, key: tuple[Value, ...], *, same: bool) -> None:
        reason = "the same key as the row before" if same else "out of the order of the key"
        self.findings.add("KEY", self.file, reason, row=row, column=",".join(self.table.key), found=_shown(key))

    def _reference(
        self, piece: Piece, column: str, refers: str, value: Value, known: frozenset[Value], *, many: bool
    ) -> None:
        parts = str(value).split(";") if many else [value]
        lost = [part for part in parts if part not in known]
        if not lost:
            return
        for row, found in zip(piece.rows, piece.columns[column], strict=True):
            if found == value:
                self.findings.add(
                    "REFERENCE", self.file, f"{lost[0]} is not there", row=row, column=column,
                    expected=f"a row of {refers}", found=value,
                )  # fmt: skip


def _rising(keys: list[tuple[Value, ...]]) -> bool:
    """Return whether keys that are all there come in order, as they nearly always do."""
    try:
        return all(map(lt, keys, keys[1:]))
    except TypeError:
        return False


def _before(last: tuple[Value, ...], key: tuple[Value, ...]) -> bool:
    try:
        return last < key  # columns have one type each
    except TypeError:
        return tuple(map(sortable, last)) < tuple(map(sortable, key))


def _shown(key: tuple[Value, ...]) -> str:
    return ", ".join(str(part) for part in key)
