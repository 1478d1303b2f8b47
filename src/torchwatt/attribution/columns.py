"""Make the regressors of the estimator: a column per (slot, signature), small ones pooled if there are too many."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.look import Records
from torchwatt.core.activity import Activity
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import Slot
from torchwatt.core.units import NS_PER_S

# The work grows with the cube of the columns; beyond this the smallest are pooled by signature.
MAX_COLUMNS = 600


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The columns of one activity, and their slots and groups.

    `seconds` (S, C) is how long each slot ran in each column, `shared_s` (S,) its equal share of the time in which
    several streams ran. `signature`, `kind` (same set of signatures in the slot, a layer type) and `module` number
    groups of similar columns.
    """

    slots: tuple[Slot, ...]
    of_record: IntArray
    seconds: FloatArray
    shared_s: FloatArray
    signature: IntArray
    kind: IntArray
    module: IntArray
    pooled: int

    @property
    def count(self) -> int:
        """Return the number of columns, without idle."""
        return int(self.seconds.shape[1])


def columns_of(activity: Activity, max_columns: int = MAX_COLUMNS) -> Columns:
    """Return the columns of an activity."""
    long_s = (activity.end_ns - activity.start_ns) / NS_PER_S
    signature = activity.signature if len(activity.signature) else np.zeros(len(activity), dtype=np.int64)
    pair = activity.slot * max(len(activity.signatures), 1) + signature
    names, of_record = np.unique(pair, return_inverse=True)
    slot_of, signature_of = np.divmod(names, max(len(activity.signatures), 1))
    merged, pooled = _pool(_seconds(of_record, long_s, len(names)), signature_of, max_columns)
    of_record = merged[of_record]
    count = int(merged.max(initial=-1)) + 1
    seconds = np.zeros((len(activity.slots), count))
    np.add.at(seconds, (activity.slot, of_record), long_s)
    pair_of_column = np.zeros(count, dtype=np.int64)  # any of the pairs behind a column: all have its signature
    pair_of_column[merged] = np.arange(len(names))
    kinds = _kinds(activity.slots, slot_of, signature_of)
    return Columns(
        activity.slots,
        np.asarray(of_record, dtype=np.int64),
        seconds,
        equal_share_s(activity),
        np.asarray(signature_of[pair_of_column] if len(activity.signature) else np.arange(count)),
        kinds[slot_of[pair_of_column]],
        _numbers([slot.fqn for slot in activity.slots])[slot_of[pair_of_column]],
        pooled,
    )


def records_of(activity: Activity, columns: Columns, origin_ns: int) -> Records:
    """Return the records on the estimator's clock, in seconds from `origin_ns`."""
    start_s, end_s = ((t - origin_ns) / NS_PER_S for t in (activity.start_ns, activity.end_ns))
    return Records(start_s, end_s, columns.of_record, activity.filled, columns.count)


def equal_share_s(activity: Activity) -> FloatArray:
    """Return each slot's seconds of device time; time of n concurrent records is shared equally."""
    edges = np.concatenate((activity.start_ns, activity.end_ns))
    order = np.argsort(edges, kind="stable")
    running = np.cumsum(np.repeat([1, -1], len(activity))[order])[:-1]
    long_s = np.diff(edges[order]) / NS_PER_S
    shared = np.divide(long_s, running, out=np.zeros_like(long_s), where=running > 0)
    total = np.empty(len(edges))
    total[order] = np.concatenate(([0.0], np.cumsum(shared)))
    own_s = total[len(activity) :] - total[: len(activity)]
    return np.asarray(np.bincount(activity.slot, own_s, len(activity.slots)), dtype=np.float64)


def _seconds(index: IntArray, long_s: FloatArray, count: int) -> FloatArray:
    return np.asarray(np.bincount(index, long_s, count), dtype=np.float64)


def _pool(time_s: FloatArray, signature: IntArray, max_columns: int) -> tuple[IntArray, int]:
    """Keep the longest columns and pool the others by signature; return new numbers and how many were pooled."""
    if len(time_s) <= max_columns:
        return np.arange(len(time_s)), 0
    by_time = np.argsort(-time_s, kind="stable")
    separate = np.zeros(len(time_s), dtype=np.bool_)
    separate[by_time[: max_columns // 2]] = True
    name = np.where(separate, np.arange(len(time_s)), len(time_s) + signature)
    pooled_names = np.unique(name[~separate])
    if len(pooled_names) > max_columns - max_columns // 2:  # too many signatures as well: the smallest are one column
        by_signature = np.bincount(np.searchsorted(pooled_names, name[~separate]), time_s[~separate])
        small = pooled_names[np.argsort(-by_signature, kind="stable")[max_columns - max_columns // 2 - 1 :]]
        name[np.isin(name, small)] = small[0]
    return np.unique(name, return_inverse=True)[1], int((~separate).sum())


def _kinds(slots: tuple[Slot, ...], slot_of: IntArray, signature_of: IntArray) -> IntArray:
    """Number the layer types: slots of one phase with the same set of signatures."""
    sets: list[list[int]] = [[] for _ in slots]
    for slot, signature in zip(slot_of.tolist(), signature_of.tolist(), strict=True):
        sets[slot].append(signature)
    return _numbers([(slot.phase, tuple(slot_signatures)) for slot, slot_signatures in zip(slots, sets, strict=True)])


def _numbers(names: Sequence[Hashable]) -> IntArray:
    """Number distinct names in order of their first appearance."""
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names], dtype=np.int64)
