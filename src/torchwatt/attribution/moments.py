"""Sufficient statistics of readings, for prior, fit and checks, of a size independent of the run's length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.core.meter import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """G = A'WA, h = A'Wy, y'Wy and the number of readings."""

    gram: FloatArray
    pull: FloatArray
    square: float
    rows: float

    def __add__(self, more: Moments) -> Moments:
        return Moments(self.gram + more.gram, self.pull + more.pull, self.square + more.square, self.rows + more.rows)

    def __sub__(self, fewer: Moments) -> Moments:
        return Moments(
            self.gram - fewer.gram, self.pull - fewer.pull, self.square - fewer.square, self.rows - fewer.rows
        )

    def about(self, power_w: FloatArray) -> Moments:
        """Return the moments of the readings minus the model's predictions with these powers."""
        pull = self.pull - self.gram @ power_w
        square = self.square - float(power_w @ (self.pull + pull))
        return Moments(self.gram, pull, max(square, 0.0), self.rows)


def moments(design: FloatArray, power_w: FloatArray, weight: FloatArray) -> Moments:
    """Return the moments of rows with weights (mean 1 to keep the noise's scale)."""
    weighted = design * weight[:, None]
    return Moments(weighted.T @ design, weighted.T @ power_w, float(power_w @ (weight * power_w)), float(len(power_w)))


def nothing(columns: int) -> Moments:
    """Return the moments of no readings."""
    return Moments(np.zeros((columns, columns)), np.zeros(columns), 0.0, 0.0)
