"""Shrink the joules of repeated blocks towards each other, weighted by their errors (empirical Bayes).

Modules are alike where class, parameters and name but for its indices are the same: `blocks.3.fc1` and `blocks.7.fc1`.
Joules per call of alike modules are assumed to lie on one level or a few, with a normal distribution around it, whose
variance is estimated from the data (empirical Bayes by moments; DerSimonian and Laird, Controlled Clinical Trials 7,
1986). Where they differ no more than by chance, they become equal; where errors are small, nothing changes. The total
of a group is kept.
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
    """Return a group number for each slot, the same for alike modules in one phase; -1: no other is alike."""
    module_by_name = {module.fqn: module for module in modules}
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, slot in enumerate(slots):
        module = module_by_name.get(slot.fqn)
        if module is not None and _INDEX.search(slot.fqn):
            place = _INDEX.sub("*", slot.fqn)
            key = (slot.phase, place, module.class_name, module.params, module.param_bytes)
            kinds.setdefault(key, []).append(number)
    group_of_slot = np.full(len(slots), -1, dtype=np.int64)
    for group, members in enumerate(members for members in kinds.values() if len(members) > 1):
        group_of_slot[members] = group
    return group_of_slot


def share_strength(
    energy_j: FloatArray, sd_j: FloatArray, calls: FloatArray, group: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return joules after shrinkage within groups, and their standard deviations.

    Args:
        energy_j: Joules of each slot.
        sd_j: Their independent errors, without errors common to all.
        calls: Calls of each slot; a group with an unknown number is unchanged.
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
    # The errors of small values are small because the values are: alike slots have one relative error, of their mean.
    variance = np.maximum(variance, float(np.median(variance)))
    moved, after = np.empty_like(each), np.empty_like(each)
    for level in _levels(each, variance):
        moved[level], after[level] = _shrunk_level(each[level], variance[level])
        moved[level] *= fsum(energy_j[level]) / fsum(moved[level] * calls[level])
    return moved * calls, np.sqrt(after) * calls


def _levels(each: FloatArray, variance: FloatArray) -> list[IntArray]:
    """Cut values into significantly different levels: the first of equal blocks often does less, and is kept apart.

    Sorted values are cut in two where that explains most, as long as it explains more than cutting noise would.
    """
    todo, levels = [np.argsort(each, kind="stable")], []
    while todo:
        level = todo.pop()
        weight = np.cumsum(1.0 / variance[level])
        pull = np.cumsum(each[level] / variance[level])
        lower_weight, upper_weight = weight[:-1], weight[-1] - weight[:-1]
        explained = (
            lower_weight
            * upper_weight
            / weight[-1]
            * (pull[:-1] / lower_weight - (pull[-1] - pull[:-1]) / upper_weight) ** 2
        )
        if len(level) > 1 and explained.max() > _explained_by_chance(len(level)):
            cut = int(np.argmax(explained)) + 1
            todo += [level[:cut], level[cut:]]
        else:
            levels.append(level)
    return levels


def _explained_by_chance(count: int) -> float:
    """Return the 95 % limit of what the best cut of `count` equal values explains of their noise, in variances.

    The mean of Hartigan (Annals of Statistics 6, 1978), 2/pi each; the rest from draws of 2 to 200 values.
    """
    return 2.0 / np.pi * count + 1.65 * float(np.sqrt(count)) + 0.8


def _shrunk_level(each: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the shrunk values of one level, and their variances.

    Values are shrunk as far as chance (95 %) can explain their differences; the variances include the distance to the
    most likely values.
    """
    weight = 1.0 / variance
    mean = float(weight @ each / weight.sum())
    freedom = len(each) - 1
    least, usual = (_between(each, variance, chance) for chance in (_chi_square_95(freedom), freedom))
    moved, likely = (mean + _kept(true, variance) * (each - mean) for true in (least, usual))
    retained = _kept(usual, variance)
    return moved, retained * variance + (1.0 - retained) ** 2 / weight.sum() + (likely - moved) ** 2


def _kept(true: float, variance: FloatArray) -> FloatArray:
    return true / (true + variance)


def _between(each: FloatArray, variance: FloatArray, chance: float) -> float:
    """Return the variance of the true values around their mean, by moments; 0 where chance explains all differences.

    Args:
        each: Values.
        variance: Of their errors.
        chance: The weighted sum of squares attributed to errors.
    """
    weight = 1.0 / variance
    mean = weight @ each / weight.sum()
    surplus = float(weight @ (each - mean) ** 2) - chance
    spread = float(weight.sum() - (weight**2).sum() / weight.sum())
    return max(surplus / spread, 0.0) if spread > 0 else 0.0


def _chi_square_95(freedom: int) -> float:
    """Return the upper 5 % point of chi square (Wilson and Hilferty, 1931)."""
    if freedom == 0:
        return 0.0
    part = 2.0 / (9.0 * freedom)
    return float(freedom * (1.0 - part + 1.645 * np.sqrt(part)) ** 3)
