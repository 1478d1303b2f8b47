"""Delay the start of steps at random, so that a sensor whose period equals the step's samples all parts of a step."""

from __future__ import annotations

import random
import time
from typing import Any


class Dither:
    """Sleep for a random time after each optimizer step and each step that the user marks; only on request.

    With up to 1 ms per step, a run in sync with the sensor's period has a third of the error (docs/attribution.md, T5).

    Args:
        most_s: Maximum sleep in seconds; drawn uniformly from 0 on.
        seed: Of the draws.
    """

    def __init__(self, most_s: float, seed: int | None = None) -> None:
        self.most_s = most_s
        self.slept_s = 0.0
        self.steps = 0
        self._draw = random.Random(seed)  # noqa: S311  not used for cryptography
        self._handle: Any = None

    def start(self) -> None:
        """Register a hook on the optimizers of this process."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._handle = register_optimizer_step_post_hook(lambda *_: self.shake())

    def shake(self) -> None:
        """Sleep for a random time."""
        import torch

        if torch.compiler.is_compiling():
            return
        seconds = self._draw.uniform(0.0, self.most_s)
        time.sleep(seconds)
        self.slept_s += seconds
        self.steps += 1

    def told(self) -> str:
        """Return a sentence on the delays, for the report."""
        most_ms, slept_ms = self.most_s * 1e3, self.slept_s * 1e3
        return f"{self.steps} steps were shaken by {slept_ms:.1f} ms in all, as asked: at most {most_ms:g} ms each"

    def stop(self) -> None:
        """Remove the hook."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()
