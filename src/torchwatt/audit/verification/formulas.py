"""The formula that the schema fixes for a row of `impact`, written from its criterion, phase, method and factors.

A writer has no choice: with the factors that a row names there is one formula, and it is compared as text. So a row can
neither leave the PUE out nor bring a number of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

S_PER_YEAR = 31_557_600  # UCUM's "a"
USAGE: Mapping[str, frozenset[str]] = {  # criterion -> kinds of grid factors
    "gwp": frozenset({"grid_gwp", "contract_gwp", "residual_mix"}),
    "adpe": frozenset({"grid_adpe"}),
    "pe": frozenset({"grid_pe"}),
    "cost": frozenset({"price"}),
}
GRIDS = frozenset[str]().union(*USAGE.values()) - {"price"}
UNITS = {"gwp": "g{CO2e}", "adpe": "kg{Sbeq}", "pe": "MJ", "wcf": "L", "energy": "J"}
_MADE: Mapping[str, tuple[str, str]] = {  # criterion -> kind, and from its unit to the row's
    "gwp": ("embodied_gwp", "1000"),
    "adpe": ("embodied_adpe", "1"),
    "pe": ("embodied_pe", "1"),
}
_TERM = re.compile(r"(?:([0-9]{1,6})\*)?(embodied_[a-z]+(?:_[0-9]+)?)\*(share(?:_[0-9]+)?)/(lifetime(?:_[0-9]+)?)")


def usage(criterion: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the formulas that a row of usage may have, with factors of these kinds in the order of `factor_ids`."""
    pue = "pue*" if "pue" in kinds else ""
    if criterion == "energy":
        return ("energy_j", "energy_j*pue") if "pue" in kinds else ("energy_j",)
    if criterion == "wcf":
        grid = f"{pue}grid_wue" if "grid_wue" in kinds else ""
        terms = [term for term in ("wue" if "wue" in kinds else "", grid) if term]
        return (f"energy_j/3.6e6*({'+'.join(terms)})",) if terms else ()
    grids = [kind for kind in dict.fromkeys(kinds) if kind in USAGE.get(criterion, ())]
    others = set(kinds) - set(grids) - {"pue"}
    return (f"energy_j/3.6e6*{pue}{grids[0]}",) if len(grids) == 1 and not others else ()


def is_embodied(criterion: str, formula: str, kinds: Sequence[str]) -> bool:
    """Return whether a formula shares the making of devices out over their lives, each factor of the row used."""
    kind, scale = _MADE.get(criterion, ("", ""))
    head = f"duration_s/{S_PER_YEAR}*{scale}*("
    if not kind or not formula.startswith(head) or not formula.endswith(")"):
        return False
    terms = [_TERM.fullmatch(term) for term in formula[len(head) : -1].split("+")]
    if not all(terms):
        return False
    used = {name for term in terms if term for name in term.groups()[1:]}
    return used == set(names(kinds)) and {_kind(name) for name in used} == {kind, "share", "lifetime"}


def devices(formula: str) -> int:
    """Return how many devices the terms of an embodied formula stand for."""
    return sum(int(term[1] or 1) for term in _TERM.finditer(formula))


def names(kinds: Iterable[str]) -> list[str]:
    """Return what factors are called in a formula: by kind, numbered where there are several of one."""
    listed = list(kinds)
    counts, seen, found = Counter(listed), Counter[str](), []
    for kind in listed:
        seen[kind] += 1
        found.append(kind if counts[kind] == 1 else f"{kind}_{seen[kind]}")
    return found


def _kind(name: str) -> str:
    return re.sub(r"_[0-9]+$", "", name)
