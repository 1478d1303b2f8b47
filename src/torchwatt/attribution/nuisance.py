"""Nuisance effects on readings: a slow common gain, and timing jitter that differs between readings."""

from __future__ import annotations

import numpy as np

from torchwatt.attribution.look import Rows
from torchwatt.core.meter import FloatArray

# Leakage follows temperature and clocks follow load over many seconds; layers change within milliseconds.
GAIN_SMOOTH_S = 8.0
GAIN_BOUND = 0.15
CELL_S = 0.5


def slow_gain(rows: Rows, power_w: FloatArray) -> FloatArray:
    """Return each reading's common gain: readings over model, smoothed over 8 s; its weighted mean is 1."""
    model_w = rows.design @ power_w
    cell = np.floor((rows.at_s - rows.at_s[0]) / CELL_S).astype(np.int64)
    cells = int(cell[-1]) + 1
    products = np.bincount(cell, rows.power_w * model_w, cells)
    squares = np.bincount(cell, model_w**2, cells)
    reach = round(2 * GAIN_SMOOTH_S / CELL_S)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) * CELL_S / (GAIN_SMOOTH_S / 2)) ** 2)
    products, squares = (np.convolve(values, bell)[reach : reach + cells] for values in (products, squares))
    gain = np.divide(products, squares, out=np.ones(cells), where=squares > 0)
    middles = (np.arange(cells) + 0.5) * CELL_S + rows.at_s[0]
    each = np.interp(rows.at_s, middles, gain)
    each /= float(np.average(each, weights=model_w**2 + 1e-12))
    return np.asarray(np.clip(each, 1 - GAIN_BOUND, 1 + GAIN_BOUND), dtype=np.float64)


def reading_weights(rows: Rows, residual_w: FloatArray, power_w: FloatArray) -> FloatArray:
    """Return weights 1 / Var, mean 1: Var = v0 + v1 J^2 + v2 f.

    J is the slope of the model at the reading's instant, so v1 is the variance of publication times; f is the share of
    carried-over work in the window, whose times are estimates. Non-negative least squares on squared residuals, in
    three rounds of reweighting.
    """
    slope = rows.slope @ power_w
    shapes = [np.ones(len(rows)), slope**2]
    if rows.filled.any():
        shapes.append(rows.filled)
    square = np.minimum(residual_w**2, 25 * np.median(residual_w**2) + 1e-12)  # outliers do not set the scale
    variance = np.full(len(rows), float(square.mean()) + 1e-12)
    design = np.stack(shapes, axis=1)
    for _ in range(3):
        variance = design @ _non_negative(design / variance[:, None], square / variance)
        variance = np.maximum(variance, 0.05 * float(square.mean()) + 1e-12)
    weight = 1.0 / variance
    return np.asarray(weight / weight.mean(), dtype=np.float64)


def _non_negative(design: FloatArray, values: FloatArray) -> FloatArray:
    """Return non-negative least-squares coefficients, with the constant always included, by trying all subsets."""
    best, best_cost = np.zeros(design.shape[1]), np.inf
    for bits in range(2 ** (design.shape[1] - 1)):
        use = [0, *(i + 1 for i in range(design.shape[1] - 1) if bits >> i & 1)]
        coefficients = np.linalg.lstsq(design[:, use], values, rcond=None)[0]
        cost = float(((design[:, use] @ coefficients - values) ** 2).sum())
        if np.all(coefficients >= 0) and cost < best_cost:
            best, best_cost = np.zeros(design.shape[1]), cost
            best[use] = coefficients
    return best
