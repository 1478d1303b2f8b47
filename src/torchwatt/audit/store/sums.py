"""Sums of stored runs by project and month."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torchwatt.audit.counted_run import RunShare
from torchwatt.audit.counting import count_once
from torchwatt.audit.exports.counted_runs import run_of_text
from torchwatt.audit.exports.totals import Counted, Total, total
from torchwatt.audit.store.index import StoredRun


@dataclass(frozen=True, slots=True)
class Group:
    """Sums of the runs of one project in one month."""

    project: str
    month: str
    total: Total


def shares(runs: Iterable[StoredRun]) -> dict[str, RunShare]:
    """Return the result of `count_once` over these runs, by `StoredRun.key`."""
    return count_once(run_of_text(run.metered, run.key) for run in runs)


def sums(runs: Iterable[StoredRun], among: Mapping[str, RunShare] | None = None) -> tuple[Group, ...]:
    """Add up runs by project and month; `Total.refused` lists what was not added.

    Args:
        runs: The runs to add up.
        among: `shares` of all runs of the store; by default of these runs.
    """
    chosen = list(runs)
    share_of_run = shares(chosen) if among is None else among
    groups: dict[tuple[str, str], list[Counted]] = defaultdict(list)
    for run in chosen:
        groups[run.project, run.month].append(replace(run.counted, share=share_of_run[run.key]))
    return tuple(Group(*key, total(counted)) for key, counted in sorted(groups.items()))
