"""Sums of kept runs, by project and month."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torchwatt.audit.exports.totals import Total, total
from torchwatt.audit.store.index import StoredRun


@dataclass(frozen=True, slots=True)
class Group:
    """One project in one month."""

    project: str
    month: str
    total: Total


def sums(runs: Iterable[StoredRun]) -> tuple[Group, ...]:
    """Add up runs by project and month; what must not be added is empty and said why."""
    groups: dict[tuple[str, str], list[StoredRun]] = defaultdict(list)
    for run in runs:
        groups[run.project, run.month].append(run)
    return tuple(Group(*key, total(run.counted for run in found)) for key, found in sorted(groups.items()))
