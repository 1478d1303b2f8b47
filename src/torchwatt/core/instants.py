"""Arithmetic on instants in nanoseconds: after a hundred days of uptime a float cannot represent them exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray


def interpolate(at_ns: IntArray | Sequence[int] | int, t_ns: IntArray, values: FloatArray | IntArray) -> FloatArray:
    """Return values at instants, linear between neighbours and constant beyond the ends.

    Times are taken relative to `t_ns[0]` as integers before conversion to float, so that no precision is lost.

    Args:
        at_ns: Instants, of any shape.
        t_ns: Increasing instants of the values, at least one.
        values: One for each of `t_ns`.
    """
    t_ns = np.asarray(t_ns, dtype=np.int64)
    since_ns = np.asarray(at_ns, dtype=np.int64) - t_ns[0]
    return np.asarray(np.interp(since_ns, t_ns - t_ns[0], values), dtype=np.float64)


def equally_apart(start_ns: int, end_ns: int, count: int) -> IntArray:
    """Return `count` instants from the start to the end, both included."""
    return np.linspace(0, end_ns - start_ns, count).astype(np.int64) + start_ns
