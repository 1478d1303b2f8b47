"""A small downhill simplex, since numpy is the only numerical dependency."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from torchwatt.core.meter import FloatArray


def simplex(
    function: Callable[[FloatArray], float],
    start: FloatArray,
    size: FloatArray,
    *,
    max_evaluations: int,
    close: float = 1e-3,
) -> tuple[FloatArray, float]:
    """Minimise a function of a few variables (Nelder and Mead, The Computer Journal 7, 1965).

    Args:
        function: May return infinity for invalid arguments.
        start: The first corner.
        size: Distance of the other corners from it, per variable.
        max_evaluations: Approximate limit of evaluations.
        close: Stop when the values at all corners differ by less.

    Returns:
        The best point and its value.
    """
    points = [start, *(start + np.eye(len(start))[i] * size[i] for i in range(len(start)))]
    values = [function(point) for point in points]
    spent = len(points)
    while spent < max_evaluations:
        order = np.argsort(values)
        points, values = [points[i] for i in order], [values[i] for i in order]
        if values[-1] - values[0] < close:
            break
        centre = np.mean(points[:-1], axis=0)
        spent += _move(function, points, values, centre)
    best = int(np.argmin(values))
    return points[best], values[best]


def _move(
    function: Callable[[FloatArray], float], points: list[FloatArray], values: list[float], centre: FloatArray
) -> int:
    """Replace the worst corner: reflected, expanded, contracted, or everything shrunk; return evaluations spent."""
    mirrored = 2 * centre - points[-1]
    value = function(mirrored)
    spent = 1
    if value < values[0]:
        further = 3 * centre - 2 * points[-1]
        beyond = function(further)
        points[-1], values[-1] = (further, beyond) if beyond < value else (mirrored, value)
        return spent + 1
    if value < values[-2]:
        points[-1], values[-1] = mirrored, value
        return spent
    inner = (centre + (mirrored if value < values[-1] else points[-1])) / 2
    inner_value = function(inner)
    if inner_value < min(value, values[-1]):
        points[-1], values[-1] = inner, inner_value
        return spent + 1
    for i in range(1, len(points)):
        points[i] = (points[i] + points[0]) / 2
        values[i] = function(points[i])
    return spent + len(points)
