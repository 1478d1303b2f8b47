"""Journals in a store: of running runs, and of dead ones that were not recovered."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchwatt.core.errors import BundleError
from torchwatt.core.frame import Frame, Kind, decode
from torchwatt.core.warn import warn
from torchwatt.disk.path_safety import folder_entries, kind_of, open_own
from torchwatt.sensors.journal.rings import READINGS
from torchwatt.session.journal.place import IN_STORE, WORK, remove
from torchwatt.session.journal.read import MOST_FILE_BYTES
from torchwatt.session.journal.told import Head, from_json

MOST_JOURNALS = 50
MOST_BYTES = 4 << 30
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredJournal:
    """One journal; `alive` is whether its run is still running, None if that is unknown from here."""

    run_id: str
    path: Path
    bytes: int
    written_s: float
    name: str
    alive: bool | None


def stored_journals(store: Path) -> tuple[StoredJournal, ...]:
    """Return the journals of a store, oldest first."""
    folder = store / IN_STORE
    try:
        entries = folder_entries(folder, store)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise BundleError(f"cannot read {folder}: {error.strerror}") from error
    journals = (_stored(folder / name, store) for name, kind in entries.items() if kind == "folder")
    return tuple(
        sorted(
            (journal for journal in journals if journal is not None),
            key=lambda journal: (journal.written_s, journal.run_id),
        )
    )


def find_journal(store: Path, run: str) -> Path:
    """Return the folder of a journal by the run's id, or its beginning or end.

    Raises:
        BundleError: No journal matches, or several do.
    """
    near = [j for j in stored_journals(store) if j.run_id.startswith(run) or j.run_id.endswith(run)]
    if len(near) != 1:
        shown = ", ".join(journal.run_id for journal in near[-5:])
        raise BundleError(f"{run!r} is several journals: {shown}" if near else f"no journal {run!r} in {store}")
    return near[0].path


def prune(store: Path, max_journals: int = MOST_JOURNALS, most_bytes: int = MOST_BYTES) -> None:
    """Remove the oldest journals of dead runs beyond a number and a total size, with a warning for each."""
    try:
        dead = [journal for journal in stored_journals(store) if journal.alive is False]
    except BundleError:  # writing a journal there raises the error itself
        return
    total = sum(journal.bytes for journal in dead)
    while dead and (len(dead) > max_journals or total > most_bytes):
        oldest = dead.pop(0)
        total -= oldest.bytes
        remove(oldest.path)
        text = f"torchwatt removed the journal of run {oldest.run_id}: more than {max_journals} were never recovered"
        warn(text)


def _stored(path: Path, store: Path) -> StoredJournal | None:
    stats = []
    for name in (WORK, READINGS):
        with suppress(OSError):
            stats.append((path / name).lstat())
    if not stats:
        return None
    head = _head(path, store)
    return StoredJournal(
        path.name,
        path,
        sum(stat.st_size for stat in stats),
        max(stat.st_mtime for stat in stats),
        head.name if head is not None else "",
        head.owner.alive() if head is not None else False,
    )


def _head(path: Path, store: Path) -> Head | None:
    with suppress(BundleError, OSError):
        for name in (WORK, READINGS):
            if kind_of(path / name) is None:
                continue
            with open_own(path / name, MOST_FILE_BYTES, store) as file:
                first_frame = next(decode(file.read(_HEAD_BYTES)), None)
            if isinstance(first_frame, Frame) and first_frame.kind == Kind.HEAD:
                return from_json(first_frame.payload, Head)
    return None
