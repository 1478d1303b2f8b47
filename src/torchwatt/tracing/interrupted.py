"""Even out interruptions: other programs occupy the core for milliseconds, during an arbitrary layer. Pure.

A recorded call is a template for many others. A layer of 0.2 ms interrupted for 5 ms would have 25 times its work in
all of them. Up to the time that a call's thread did not run, the excess of a piece over the same piece of other calls
is spread evenly over the work of that call; its length and its communication are unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.elastic import ElasticTemplate, is_communication
from torchwatt.tracing.template import Template

LONGER, SHORTEST_NS = 2.0, 200_000.0  # factor, plus ns: an interrupted piece is longer than the shortest of its like


def even_out(calls: Sequence[ElasticTemplate], away_ns: Sequence[int]) -> list[ElasticTemplate]:
    """Return the templates of calls of one structure without their interruptions.

    Args:
        calls: As recorded.
        away_ns: How long the thread of each did not run during the call, waits for other ranks included.
    """
    templates = list(calls)
    same_pieces: dict[bytes, list[int]] = defaultdict(list)
    orders = [_order(call.plain) for call in calls]
    for i, (call, order) in enumerate(zip(calls, orders, strict=True)):
        same_pieces[call.plain.owner.tobytes() + order.tobytes()].append(i)
    for members in same_pieces.values():
        if len(members) > 1:
            order = orders[members[0]]
            pieces = np.stack([_pieces_ns(calls[i], order) for i in members])
            works = ~_in_communication(calls[members[0]].plain, order)
            least = pieces.min(axis=0)  # on a crowded machine most calls are interrupted in the same layer
            for i, own in zip(members, pieces, strict=True):
                evened = _evened(own, least, works, away_ns[i])
                if evened is not own:
                    templates[i] = _with_pieces(calls[i], order, evened)
    return templates


def _order(template: Template) -> IntArray:
    """Return the order of a template's starts and ends; at equal times ends come first, inner before outer."""
    count = len(template.first)
    number = np.arange(count)
    bounds = np.concatenate((template.first, template.last))
    is_start = np.repeat([1, 0], count)
    return np.lexsort((np.concatenate((number, -number)), is_start, bounds))


def _pieces_ns(call: ElasticTemplate, order: IntArray) -> FloatArray:
    """Return the times between neighbouring bounds, from the call's start to its end."""
    bounds = np.concatenate((call.plain.first, call.plain.last))[order]
    return np.asarray(np.diff(bounds, prepend=0.0, append=1.0) * call.net_ns, dtype=np.float64)


def _in_communication(template: Template, order: IntArray) -> np.ndarray:
    talks = is_communication(template.owner).astype(np.int64)
    depth = np.cumsum(np.concatenate((talks, -talks))[order])
    return np.concatenate(([False], depth > 0))


def _evened(own: FloatArray, least: FloatArray, works: np.ndarray, away_ns: float) -> FloatArray:
    surplus = np.where(works & (own > LONGER * least + SHORTEST_NS), own - least, 0.0)
    if not surplus.any() or away_ns <= 0:
        return own
    evened = own - surplus * min(away_ns / surplus.sum(), 1.0)
    return np.where(works, evened * (own[works].sum() / evened[works].sum()), own)


def _with_pieces(call: ElasticTemplate, order: IntArray, pieces_ns: FloatArray) -> ElasticTemplate:
    template = call.plain
    bounds = np.empty(len(order))
    bounds[order] = np.minimum(np.cumsum(pieces_ns[:-1]) / call.net_ns, 1.0)
    starts, ends = np.split(bounds, 2)
    return ElasticTemplate(Template(starts, ends, template.owner, template.calls), call.net_ns)
