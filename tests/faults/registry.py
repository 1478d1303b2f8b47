"""The table of faults: what is done, what the user sees, what is kept. Running it is the test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.event_codes import event_codes
from tests.faults.zero import no_silent_zero
from torchwatt.core.report import Report

# `CODE` of an event, or a status of the run; a name that is neither is prose.
_WORD = re.compile(r"`([A-Z_]{4,}|complete|partial|aborted|unavailable)`")


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run told its user."""

    codes: frozenset[str]

    @classmethod
    def of(cls, report: Report, *, idle_may_be_0: bool = False, files: bool = True) -> Seen:
        """Look at a report as a user would, and at everything for a silent zero."""
        no_silent_zero(report, idle_may_be_0=idle_may_be_0, files=files)
        missing = {"unavailable"} if report.unavailable else set()
        return cls(frozenset({report.status, *missing, *(event.code for event in report.events)}))


Inject = Callable[[Path], Iterable[Seen]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the table.

    `inject` does it in the given folder and returns what each run of it told; it asserts what `keeps` says. `proofs`
    are tests elsewhere that prove the very thing. A word of `sees` in backticks must have been told by a run.
    """

    group: str
    name: str
    sees: str
    keeps: str
    inject: Inject | None = None
    proofs: tuple[str, ...] = ()

    @property
    def words(self) -> frozenset[str]:
        """Return what `sees` promises in so many words."""
        return frozenset(_WORD.findall(self.sees))

    def run(self, folder: Path) -> frozenset[str]:
        """Inject it; return what was told, which holds all that was promised."""
        assert self.inject is not None, f"{self.name}: is proved elsewhere"
        told = frozenset(word for seen in self.inject(folder) for word in seen.codes)
        assert self.words <= told, f"{self.name}: promised {sorted(self.words - told)}, told {sorted(told)}"
        unlisted = {word for word in told if word.isupper()} - event_codes()
        assert not unlisted, f"{self.name}: tests/faults/event_codes.py lacks {sorted(unlisted)}"
        return told


FAULTS: list[Fault] = []


def fault(group: str, name: str, *, sees: str, keeps: str, proofs: Sequence[str] = ()) -> Callable[[Inject], Inject]:
    """Enter a fault into the table."""

    def enter(inject: Inject) -> Inject:
        FAULTS.append(Fault(group, name, sees, keeps, inject, tuple(proofs)))
        return inject

    return enter


def proved(group: str, name: str, *, sees: str, keeps: str, by: Sequence[str]) -> None:
    """Enter a fault whose proof is a test elsewhere."""
    FAULTS.append(Fault(group, name, sees, keeps, None, tuple(by)))


def table(faults: Sequence[Fault]) -> str:
    """Return the page: one table a group."""
    lines: list[str] = []
    for group in dict.fromkeys(one.group for one in faults):
        lines += ["", f"## {group}", "", "| fault | what the user sees | what is kept | shown by |"]
        lines.append("|---|---|---|---|")
        for one in (f for f in faults if f.group == group):
            shown = ["this suite"] if one.inject is not None else []
            shown += [f"`{proof.replace('tests/', '')}`" for proof in one.proofs]
            lines.append(f"| {one.name} | {one.sees} | {one.keeps} | {'; '.join(shown)} |")
    return "\n".join(lines) + "\n"
