"""Alike modules share their strength: the joules of repeated blocks are shrunk to each other by their evidence.

Modules are alike where class, parameters and name but for its indices are the same: `blocks.3.fc1` and `blocks.7.fc1`.
Joules a call of alike modules are taken to be normal around a common mean; how far they truly differ comes from the
data (empirical Bayes; DerSimonian and Laird, Controlled Clinical Trials 7, 1986). Where they differ no more than their
errors explain, they come out equal; where the errors are small, nothing changes. A group's joules stay what they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import fsum

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import Slot
from torchwatt.core.trace import ModuleInfo

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


def alike_groups(slots: Sequence[Slot], modules: Iterable[ModuleInfo]) -> IntArray:
    """Return a number for each slot: slots of alike modules, in one phase, have the same; -1 has no like."""
    known = {module.fqn: module for module in modules}
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, slot in enumerate(slots):
        module = known.get(slot.fqn)
        if module is not None and _INDEX.search(slot.fqn):
            place = _INDEX.sub("*", slot.fqn)
            key = (slot.phase, place, module.class_name, module.params, module.param_bytes)
            kinds.setdefault(key, []).append(number)
    found = np.full(len(slots), -1, dtype=np.int64)
    for group, members in enumerate(members for members in kinds.values() if len(members) > 1):
        found[members] = group
    return found


def share_strength(
    energy_j: FloatArray, sd_j: FloatArray, calls: FloatArray, group: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return joules after alike slots have shared their strength, and their standard deviations.

    Args:
        energy_j: Joules of each slot.
        sd_j: Their errors beside each other, without what moves all of them together.
        calls: Calls of each slot; a group in which some are not known shares nothing.
        group: As `alike_groups` returns.
    """
    energy_j, sd_j = energy_j.copy(), sd_j.copy()
    for number in range(int(group.max(initial=-1)) + 1):
        mine = np.flatnonzero((group == number) & (energy_j > 0))
        if len(mine) < 2 or np.any(calls[mine] <= 0) or not np.all(sd_j[mine] > 0):
            continue
        energy_j[mine], sd_j[mine] = _shrunk(energy_j[mine], sd_j[mine], calls[mine])
    return energy_j, sd_j


def _shrunk(energy_j: FloatArray, sd_j: FloatArray, calls: FloatArray) -> tuple[FloatArray, FloatArray]:
    each, variance = energy_j / calls, (sd_j / calls) ** 2
    # The errors of small values are small because they are small: alike slots have one relative error, of their mean.
    variance = np.maximum(variance, float(np.median(variance)))
    true = _between(each, variance)
    weight = 1.0 / (variance + true)
    mean = float(weight @ each / weight.sum())
    kept = true / (true + variance)
    moved = (mean + kept * (each - mean)) * calls
    after = (kept * variance + (1.0 - kept) ** 2 / weight.sum()) * calls**2
    scale = fsum(energy_j) / fsum(moved)
    return moved * scale, np.sqrt(after) * scale


def _between(each: FloatArray, variance: FloatArray) -> float:
    """Return the variance of the true values around their mean, by moments; 0 where the errors explain it all."""
    weight = 1.0 / variance
    mean = weight @ each / weight.sum()
    surplus = float(weight @ (each - mean) ** 2) - (len(each) - 1)
    return max(surplus / float(weight.sum() - (weight**2).sum() / weight.sum()), 0.0)
