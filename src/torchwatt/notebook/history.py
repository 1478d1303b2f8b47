"""The runs of this kernel, for `%energy history` and the JupyterLab panel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from torchwatt.core.plain_text import printable_here
from torchwatt.core.report import Report
from torchwatt.views import DASH, format_energy, format_mass, format_time

MIME = "application/vnd.torchwatt.history.v1+json"
MAX_RUNS = 500


@dataclass(frozen=True, slots=True)
class Record:
    """Summary of one run; `power_w` is None after its end."""

    run_id: str
    name: str
    cell_id: str | None
    status: str
    t_s: float
    energy_j: float | None
    carbon_g: float | None
    power_w: float | None = None


def record_of(report: Report, cell_id: str | None) -> Record:
    """Return the summary of a finished run."""
    return Record(
        report.run_id, report.name, cell_id, report.status, report.duration_s, report.energy_j, report.carbon_g
    )


class History:
    """The latest `MAX_RUNS` runs, oldest first; displayed as text, as HTML, or by our extension."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> None:
        """Add a run, or replace its summary."""
        self._records[record.run_id] = record
        while len(self._records) > MAX_RUNS:
            self._records.pop(next(iter(self._records)))

    def __repr__(self) -> str:
        rows = [("run", "energy", "carbon", "time", "status"), *(_cells(record) for record in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return printable_here("\n".join(lines)) if len(self) else "nothing was measured yet"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {
            "text/plain": repr(self),
            "text/html": self._html(),
            MIME: {"version": 1, "runs": [{**asdict(record), "duration_s": record.t_s} for record in self]},
        }
        return {k: v for k, v in bundle.items() if (not include or k in include) and k not in (exclude or ())}

    def _html(self) -> str:
        # JupyterLab resolves links to cells by their id.
        rows = "".join(f"<tr>{_link(record)}{''.join(_td(c) for c in _cells(record)[1:])}</tr>" for record in self)
        head = "".join(f"<th>{name}</th>" for name in ("run", "energy", "carbon", "time", "status"))
        return f"<table><tr>{head}</tr>{rows}</table>" if rows else "<p>nothing was measured yet</p>"


def _cells(record: Record) -> tuple[str, str, str, str, str]:
    grams = DASH if record.carbon_g is None else f"{format_mass(record.carbon_g)} CO2e"
    return record.name, format_energy(record.energy_j), grams, format_time(record.t_s), record.status


def _td(content: str) -> str:
    return f"<td>{escape(content)}</td>"


def _link(record: Record) -> str:
    name = escape(record.name)
    return f'<td><a href="#cell-id={escape(record.cell_id)}">{name}</a></td>' if record.cell_id else f"<td>{name}</td>"
