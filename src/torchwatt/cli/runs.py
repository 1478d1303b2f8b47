"""`torchwatt runs`: lists the runs of a store, and their sums by project and month."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from torchwatt.audit.counted_run import RunShare
from torchwatt.audit.seal import MANIFEST
from torchwatt.audit.store import Group, Store, StoredRun, shares
from torchwatt.audit.store.sums import sums
from torchwatt.cli.recover import not_recovered
from torchwatt.core.plain_text import printable
from torchwatt.views import DASH, format_energy, format_mass, format_time


def runs(store: Store, *, project: str | None, month: str | None, rebuild: bool, out: IO[str] | None = None) -> int:
    """Print the saved runs and their sums by project and month.

    Raises:
        BundleError: The store cannot be read.
    """
    if rebuild:
        store.rebuild()
    everything = store.runs()
    selected = [run for run in everything if project in {None, run.project} and month in {None, run.month}]
    for line in _lines(store, selected, shares(everything)):
        print(printable(line), file=out or sys.stdout)
    for folder in store.unsealed():
        print(printable(f"not counted: {folder} has no {MANIFEST} and is not a bundle"), file=out or sys.stdout)
    for line in not_recovered(store, {run.run_id for run in everything}):
        print(printable(line), file=out or sys.stdout)
    return 0


def _lines(store: Store, selected: Sequence[StoredRun], among: Mapping[str, RunShare]) -> Iterator[str]:
    if not selected:
        yield f"no runs in {store.root}; save one with --keep, or run.keep()"
        return
    yield f"{'run':36}  {'project':14} {'began (UTC)':17} {'time':>9} {'energy':>10} {'CO2e':>10}  provenance  name"
    for run in selected:
        grams = DASH if run.location_g is None else format_mass(run.location_g)
        yield (
            f"{run.run_id:36}  {run.project:14.14} {run.started_at[:16].replace('T', ' '):17} "
            f"{format_time(run.duration_s):>9} {format_energy(run.energy_j):>10} {grams:>10}  "
            f"{run.provenance or DASH:11} {run.name}{_state(among[run.key])}"
        )
    yield ""
    for group in sums(selected, among):
        yield from _group(group)


def _state(share: RunShare) -> str:
    return "" if share.state == "yes" else f"  [{share.state}]"


def _group(group: Group) -> Iterator[str]:
    total = group.total
    words = [f"{total.runs} runs", f"energy {format_energy(total.energy_j)}"]
    if total.j_per_unit is not None and total.unit != "run":
        words.append(f"{format_energy(total.j_per_unit)} per {total.unit} (sum over sum)")
    for method, grams in (("location", total.location_g), ("market", total.market_g)):
        if grams is not None:
            words.append(f"{format_mass(grams)} CO2e {method}-based")
    yield f"{group.project} {group.month}: {', '.join(words)}"
    for why in total.shared:
        yield f"    counted once: {why}"
    for why in total.refused:
        yield f"    not added: {why}"
