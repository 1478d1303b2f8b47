"""Sum the energy of each layer over the counted domains, and select the layers to show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, hypot

from torchwatt.core.ledger import Entry, sum_if_known
from torchwatt.core.report import Report
from torchwatt.core.terms import PHASES, RESERVED, Phase, Provenance, weakest_provenance
from torchwatt.core.trace import ModuleKind

PROVENANCE_MEANING = {
    "measured": "the difference of two readings of a meter",
    "derived": "calculated from other numbers",
    "apportioned": "a share of a measured total",
    "sourced": "a published factor",
    "modelled": "calculated by a model, without a meter",
    "declared": "stated by the user",
    "assumed": "a default of torchwatt",
}
# The same glyphs as in `extension/src/provenance.ts`.
PROVENANCE_GLYPHS = {
    "measured": "●", "derived": "◆", "apportioned": "◐", "sourced": "■", "modelled": "○", "declared": "◇",
    "assumed": "□",
}  # fmt: skip
TIE_LEGEND = "~ may as well come before the layer above: the interval of their difference includes 0"


@dataclass(frozen=True, slots=True)
class PhaseSum:
    """One layer in one phase, added up over domains.

    `lo_j` to `hi_j` is the 90 % interval between repeats of the run. The bounds of the domains are added, so it is too
    wide if the domains vary independently, never too narrow. None if a domain has no interval.
    """

    energy_j: float
    lo_j: float | None
    hi_j: float | None
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class LayerSum:
    """One layer, or one reserved name, with its entries of all domains."""

    fqn: str
    class_name: str
    phases: Mapping[Phase, PhaseSum]
    entries: tuple[Entry, ...]

    @property
    def energy_j(self) -> float:
        """Return self joules over all phases and domains."""
        return fsum(entry.energy_self_j for entry in self.entries)

    @property
    def provenance(self) -> Provenance:
        """Return the weakest of its entries."""
        return weakest_provenance(*(entry.provenance for entry in self.entries))

    @property
    def reserved(self) -> bool:
        """Return whether this is a reserved row, not a module."""
        return self.fqn in RESERVED


def sum_layers(report: Report) -> tuple[LayerSum, ...]:
    """Return one sum for every module and reserved name, most joules first."""
    classes = class_names(report)
    by_fqn: dict[str, list[Entry]] = defaultdict(list)
    for ledger in report.counted:
        for entry in ledger.entries:
            by_fqn[entry.fqn].append(entry)
    layers = [_sum_layer(fqn, entries, classes.get(fqn, "")) for fqn, entries in by_fqn.items()]
    return tuple(sorted(layers, key=lambda layer: (-layer.energy_j, layer.fqn)))


def entries_by_stage(report: Report) -> dict[str, list[Entry]]:
    """Return the entries of the counted domains by the name of their stage, "" for none."""
    by_stage: dict[str, list[Entry]] = defaultdict(list)
    for ledger in report.counted:
        for entry in ledger.entries:
            by_stage[entry.stage].append(entry)
    return by_stage


def is_tied(upper: tuple[float, float | None], lower: tuple[float, float | None]) -> bool:
    """Return whether the order of two values is uncertain, each given with half its 90 % interval."""
    halves = [half for _, half in (upper, lower) if half is not None]
    return len(halves) == 2 and upper[0] - lower[0] <= hypot(*halves)


def class_names(report: Report) -> dict[str, str]:
    """Return the class of each module by all of its names."""
    return {name: m.class_name for m in report.modules for name in (m.fqn, *m.aliases)}


def module_kinds(report: Report) -> dict[str, ModuleKind]:
    """Return the kind of each module by all of its names."""
    return {name: (m.class_name, m.params) for m in report.modules for name in (m.fqn, *m.aliases)}


def _sum_layer(fqn: str, entries: Sequence[Entry], class_name: str) -> LayerSum:
    by_phase: dict[Phase, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_phase[entry.phase].append(entry)
    phases = {phase: _sum_phase(by_phase[phase]) for phase in PHASES if phase in by_phase}
    return LayerSum(fqn, class_name, phases, tuple(entries))


def _sum_phase(entries: Sequence[Entry]) -> PhaseSum:
    if len(entries) == 1:  # most modules of a live view
        (entry,) = entries
        lo_j, hi_j = entry.energy_self_lo_j, entry.energy_self_hi_j
        return PhaseSum(entry.energy_self_j, lo_j, hi_j, entry.provenance)
    return PhaseSum(
        energy_j=fsum(entry.energy_self_j for entry in entries),
        lo_j=sum_if_known(entry.energy_self_lo_j for entry in entries),
        hi_j=sum_if_known(entry.energy_self_hi_j for entry in entries),
        provenance=weakest_provenance(*(entry.provenance for entry in entries)),
    )
