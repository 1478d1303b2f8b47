"""What a simulated GPU truly draws: watts over time, and their exact integral in joules."""

from __future__ import annotations

import math
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_ENTRY = struct.Struct("<qd")  # Unix nanoseconds, watts


@dataclass(frozen=True, slots=True)
class PowerPiece:
    """Watts from `at_s` on: (offset in s, W) in steps or in ramps; the last watts hold, or all repeats."""

    at_s: float
    points: tuple[tuple[float, float], ...]
    repeat_s: float = 0.0
    ramp: bool = False

    def energy_j(self, length_s: float) -> float:
        """Return the joules of the first seconds of this piece."""
        if self.repeat_s and length_s >= self.repeat_s:
            times, rest_s = divmod(length_s, self.repeat_s)
            return times * self._once_j(self.repeat_s) + self._once_j(rest_s)
        return self._once_j(length_s)

    def _once_j(self, length_s: float) -> float:
        ends = [*self.points, (math.inf, self.points[-1][1])]
        total_j = 0.0
        for (start_s, start_w), (end_s, end_w) in pairwise(ends):
            if length_s <= start_s:
                break
            spent_s = min(length_s, end_s) - start_s
            slope = (end_w - start_w) / (end_s - start_s) if self.ramp else 0.0
            total_j += (start_w + slope * spent_s / 2) * spent_s
        return total_j

    def statement(self, device: int) -> str:
        """Return the line of a scenario that says so."""
        points = ",".join(f"{offset_s!r}:{watts!r}" for offset_s, watts in self.points)
        return (
            f"power device={device} at_s={self.at_s!r} repeat_s={self.repeat_s!r} ramp={int(self.ramp)} points={points}"
        )


@dataclass(frozen=True, slots=True)
class PowerTrace:
    """The true power of a GPU from the scenario's origin on; before it the first watts hold."""

    pieces: tuple[PowerPiece, ...]

    @classmethod
    def constant(cls, watts: float) -> PowerTrace:
        """Draw the same all the time."""
        return cls((PowerPiece(0.0, ((0.0, float(watts)),)),))

    @classmethod
    def bursts(
        cls, base_w: float = 100.0, burst_w: float = 600.0, *, on_s: float = 0.030, period_s: float = 0.130
    ) -> PowerTrace:
        """Draw `burst_w` for the last `on_s` of each period, `base_w` for the rest of it."""
        return cls((PowerPiece(0.0, ((0.0, float(base_w)), (period_s - on_s, float(burst_w))), period_s),))

    @classmethod
    def steps(cls, *points: tuple[float, float], repeat_s: float = 0.0) -> PowerTrace:
        """Draw given watts from given seconds on; the first at 0 s. Begin again every `repeat_s`, if not 0."""
        return cls((PowerPiece(0.0, points, repeat_s),))

    @classmethod
    def ramps(cls, *points: tuple[float, float], repeat_s: float = 0.0) -> PowerTrace:
        """Draw watts that change evenly between given (s, W); the first at 0 s."""
        return cls((PowerPiece(0.0, points, repeat_s, ramp=True),))

    def then(self, at_s: float, watts: float) -> PowerTrace:
        """Draw other watts from an instant on."""
        return PowerTrace((*self.pieces, PowerPiece(at_s, ((0.0, float(watts)),))))

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Return the exact joules between two instants."""
        return self._until_j(end_s) - self._until_j(start_s)

    def _until_j(self, end_s: float) -> float:
        first = self.pieces[0]
        if end_s <= first.at_s:
            return first.points[0][1] * (end_s - first.at_s)
        ends_s = [*(piece.at_s for piece in self.pieces[1:]), math.inf]
        return math.fsum(
            piece.energy_j(min(end_s, until_s) - piece.at_s)
            for piece, until_s in zip(self.pieces, ends_s, strict=True)
            if end_s > piece.at_s
        )

    def statements(self, device: int) -> list[str]:
        """Return the lines of a scenario that say so."""
        return [piece.statement(device) for piece in self.pieces]


class PowerFile:
    """True power that a program sets while the simulated GPU is read, from this process or another: a file."""

    def __init__(self, path: Path | str, watts: float | None = None) -> None:
        """Begin a log with its first watts, or open one that has begun."""
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if watts is not None:
            self.set(watts)

    def set(self, watts: float) -> None:
        """Draw so much from now on."""
        os.write(self._fd, _ENTRY.pack(time.time_ns(), watts))

    def energy_j(self, start_ns: int, end_ns: int) -> float:
        """Return the exact joules between two Unix instants."""
        t_ns, watts = zip(*_ENTRY.iter_unpack(self.path.read_bytes()), strict=True)

        def until_j(end_ns: int) -> float:
            last = bisect_right(t_ns, end_ns) - 1
            lengths_s = _lengths_s([*t_ns[: last + 1], end_ns])
            return math.fsum(w * s for w, s in zip(watts, lengths_s, strict=False))

        return until_j(end_ns) - until_j(start_ns)

    def statements(self, device: int) -> list[str]:
        """Return the lines of a scenario that say so."""
        return [f"power device={device} log={self.path}"]


def _lengths_s(t_ns: Sequence[int]) -> list[float]:
    return [(end_ns - start_ns) / 1e9 for start_ns, end_ns in pairwise(t_ns)]
