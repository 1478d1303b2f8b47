"""Sums over runs; incompatible quantities are not added, and the reasons are listed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import fsum

from torchwatt.audit.counted_run import ADDED, NOTHING, RunShare


@dataclass(frozen=True, slots=True)
class Counted:
    """Totals of one run, and in `share` the part that sums include; None is unknown, never 0."""

    run_id: str
    boundary: str
    energy_j: float | None
    unit: str
    units: float
    location_g: float | None
    market_g: float | None
    basis: str = ""  # of the location-based grams; lifecycle and direct are not added
    name: str = ""  # as in `share.neighbours` of other runs
    share: RunShare | None = None  # None: not compared with other runs, counted completely

    @property
    def once_j(self) -> float | None:
        """Return the energy that sums include."""
        return self.energy_j if self.share is None or self.share.state == "yes" else self.share.energy_j

    def once_g(self, method: str) -> float | None:
        """Return the grams that sums include, by `location` or `market`, in proportion to the joules."""
        grams: float | None = getattr(self, f"{method}_g")
        return grams if grams is None or self.share is None else grams * self.share.share


@dataclass(frozen=True, slots=True)
class Total:
    """Sums of `runs` runs; `refused` lists what was not added and why, `shared` what was counted only once."""

    runs: int
    energy_j: float | None
    unit: str
    units: float | None
    location_g: float | None
    market_g: float | None
    refused: tuple[str, ...]
    shared: tuple[str, ...] = ()
    is_complete: bool = True  # False: some energy is counted in a run that is not among these

    @property
    def j_per_unit(self) -> float | None:
        """Return energy per unit; None unless both sums are complete."""
        return self.energy_j / self.units if self.energy_j is not None and self.units and self.is_complete else None


def total(runs: Iterable[Counted]) -> Total:
    """Sum runs; a sum of different boundaries, units or bases is None and listed in `refused`.

    Location- and market-based grams are separate sums, each only if every run has that method. If runs have a `share`,
    each joule is added once, and runs that share devices to an unknown extent are left out.
    """
    everything = list(runs)
    added = [run for run in everything if run.share is None or run.share.state in ADDED]
    refused: list[str] = list(_left_out(everything))
    energy_j = _energy(added, refused)
    units = {run.unit for run in added}
    if len(units) > 1:
        refused.append(f"units {', '.join(sorted(units))}: no sum of different things")
    bases = {run.basis for run in added if run.location_g is not None}
    if len(bases) > 1:
        refused.append(f"location-based grams: {', '.join(sorted(bases))} are different bases")
    return Total(
        runs=len(added),
        energy_j=energy_j,
        unit=next(iter(units)) if len(units) == 1 else "",
        units=fsum(run.units for run in added) if len(units) == 1 else None,
        location_g=None if energy_j is None or len(bases) > 1 else _grams(added, "location", refused),
        market_g=None if energy_j is None else _grams(added, "market", refused),
        refused=tuple(refused),
        shared=(*_shared(everything), *_unidentified(added)),
        is_complete={name for run in added if run.share is not None for name in run.share.neighbours}
        <= {run.name for run in everything},
    )


_WHY = {
    "unidentified": "ran beside runs that may have metered the same devices: these are not identified",
    "overlapping": "ran beside another session on the same devices, which are not identified",
}


def _left_out(runs: list[Counted]) -> Iterator[str]:
    for state, why in _WHY.items():
        if excluded := [run for run in runs if run.share is not None and run.share.state == state]:
            yield f"{_named(excluded)}: {why}"


def _shared(runs: list[Counted]) -> Iterator[str]:
    if copies := [run for run in runs if run.share is not None and run.share.state in NOTHING]:
        yield f"{_named(copies)}: the same measurement as another run, or a part of a job that is kept"
    shares = [run.share for run in runs if run.share is not None and run.share.state == "shared"]
    if shares:
        told_j, once_j, seconds = (
            fsum(values)
            for values in zip(*((s.told_j or 0.0, s.energy_j or 0.0, s.seconds) for s in shares), strict=True)
        )
        same = f"{len(shares)} shared the same devices at the same time" if len(shares) > 1 else "1 shared its devices"
        once = f"counted once {once_j:.6g} J in {seconds:.6g} s (union of the intervals)"
        yield f"{same}: {told_j:.6g} J as they say, {once}"


def _unidentified(runs: list[Counted]) -> Iterator[str]:
    if unidentified := [run for run in runs if run.share is not None and not run.share.identified]:
        yield f"{_named(unidentified)}: not all devices are identified; added, as no other run was beside them"


def _named(runs: list[Counted]) -> str:
    shown = ", ".join(run.run_id for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    return f"{len(runs)} of the runs ({shown})"


def _energy(runs: list[Counted], refused: list[str]) -> float | None:
    boundaries = {run.boundary for run in runs}
    if len(boundaries) > 1:
        shown = " and ".join(sorted(boundary or "nothing metered" for boundary in boundaries))
        refused.append(f"energy: the runs have different boundaries ({shown})")
        return None
    energies_j = [joules for run in runs if (joules := run.once_j) is not None]
    return fsum(energies_j) if energies_j and len(energies_j) == len(runs) else None


def _grams(runs: list[Counted], method: str, refused: list[str]) -> float | None:
    values_g = [grams for run in runs if (grams := run.once_g(method)) is not None]
    if values_g and len(values_g) < len(runs):
        refused.append(f"{method}-based grams: only {len(values_g)} of {len(runs)} runs have them")
        return None
    return fsum(values_g) if values_g else None
