"""The runs of this kernel, for `%energy history` and the JupyterLab panel."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from torchwatt.core.plain_text import to_printable
from torchwatt.core.report import Report
from torchwatt.views import DASH, format_energy, format_mass, format_time

HISTORY_MIME = "application/vnd.torchwatt.history.v1+json"
MAX_RUNS = 500


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Summary of one run; `power_w` is None after its end."""

    run_id: str
    name: str
    cell_id: str | None
    status: str
    t_s: float
    energy_j: float | None
    carbon_g: float | None
    power_w: float | None = None


def run_record(report: Report, cell_id: str | None) -> RunRecord:
    """Return the summary of a finished run."""
    return RunRecord(
        report.run_id, report.name, cell_id, report.status, report.duration_s, report.energy_j, report.carbon_g
    )


class RunHistory:
    """The latest `MAX_RUNS` runs, oldest first; displayed as text, as HTML, or by our extension."""

    def __init__(self) -> None:
        self._records: dict[str, RunRecord] = {}

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(tuple(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: RunRecord) -> None:
        """Add a run, or replace its summary."""
        self._records[record.run_id] = record
        while len(self._records) > MAX_RUNS:
            self._records.pop(next(iter(self._records)))

    def __repr__(self) -> str:
        rows = [("run", "energy", "carbon", "time", "status"), *(_record_cells(record) for record in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return to_printable("\n".join(lines)) if len(self) else "nothing was measured yet"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {
            "text/plain": repr(self),
            "text/html": self._html(),
            HISTORY_MIME: {"version": 1, "runs": [{**asdict(record), "duration_s": record.t_s} for record in self]},
        }
        return {k: v for k, v in bundle.items() if (not include or k in include) and k not in (exclude or ())}

    def _html(self) -> str:
        # JupyterLab resolves links to cells by their id.
        rows = "".join(
            f"<tr>{_name_cell(record)}{''.join(_table_cell(c) for c in _record_cells(record)[1:])}</tr>"
            for record in self
        )
        head = "".join(f"<th>{name}</th>" for name in ("run", "energy", "carbon", "time", "status"))
        return f"<table><tr>{head}</tr>{rows}</table>" if rows else "<p>nothing was measured yet</p>"


def _record_cells(record: RunRecord) -> tuple[str, str, str, str, str]:
    grams = DASH if record.carbon_g is None else f"{format_mass(record.carbon_g)} CO2e"
    return record.name, format_energy(record.energy_j), grams, format_time(record.t_s), record.status


def _table_cell(content: str) -> str:
    return f"<td>{escape(content)}</td>"


def _name_cell(record: RunRecord) -> str:
    name = escape(record.name)
    return f'<td><a href="#cell-id={escape(record.cell_id)}">{name}</a></td>' if record.cell_id else f"<td>{name}</td>"


TARGET = "torchwatt.session"
MESSAGE_VERSION = 1


class HistoryChannel:
    """The comm and its history; opened at the first run. A front end without our extension just closes it."""

    def __init__(self) -> None:
        self.history = RunHistory()
        self._lock = threading.Lock()
        self._comm: Any = None
        self._pid = os.getpid()

    def tell(self, record: RunRecord) -> None:
        """Add a record to the history and send it; never raises."""
        self.history.put(record)
        with contextlib.suppress(Exception), self._lock:  # the front end may not listen
            if self._pid != os.getpid():
                return
            if self._comm is None:
                from comm import create_comm

                # A fixed id, because a page reloaded while the kernel is busy cannot request it.
                self._comm = create_comm(target_name=TARGET, comm_id=TARGET, data=_runs_message([record]))
                # Sent by a reloaded page; answered as soon as the kernel is idle.
                self._comm.on_msg(lambda _message: self._all())
            else:
                self._comm.send(_runs_message([record]))

    def close(self) -> None:
        """Close the comm; the history is kept."""
        with contextlib.suppress(Exception), self._lock:
            if self._comm is not None:
                self._comm.close()
            self._comm = None

    def _all(self) -> None:
        with contextlib.suppress(Exception), self._lock:
            self._comm.send(_runs_message(self.history))


def _runs_message(records: Iterable[RunRecord]) -> dict[str, Any]:
    return {"version": MESSAGE_VERSION, "runs": [asdict(record) for record in records]}


_channels: dict[int, HistoryChannel] = {}


def history_channel() -> HistoryChannel:
    """Return this process's channel; a forked child gets a new one with an empty history."""
    return _channels.setdefault(os.getpid(), HistoryChannel())
