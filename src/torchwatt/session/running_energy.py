"""Joules of one running meter, accumulated from overlapping curves."""

from __future__ import annotations

from torchwatt.core.curve import EnergyCurve
from torchwatt.core.units import NS_PER_S

SETTLED_NS = 2 * NS_PER_S  # readings that arrive this much later no longer change a curve


class RunningEnergy:
    """Joules of one meter since an instant.

    The end of a curve is provisional: it extrapolates a counter from its last publications, and the next curve, with
    more readings, corrects it. So only joules up to `SETTLED_NS` before the end of a curve are final, and the rest is
    taken from the next curve; otherwise the errors at the ends would add up. The total never decreases: an excess is
    subtracted from later increments.

    Attributes:
        settled_ns: The next curve should begin before this instant.
        end_ns: The instant up to which joules are in the total.
        total_j: Joules from the start to `end_ns`.
    """

    __slots__ = ("_settled_j", "end_ns", "settled_ns", "total_j")

    def __init__(self, start_ns: int) -> None:
        self.settled_ns = self.end_ns = start_ns
        self._settled_j = self.total_j = 0.0

    def extend(self, curve: EnergyCurve, end_ns: int) -> float:
        """Extend the total to `end_ns` with a later curve; return the increase in joules."""
        if curve.start_ns > self.settled_ns:  # this curve does not cover the time before its start
            self.settled_ns, self._settled_j = max(self.end_ns, curve.start_ns), self.total_j
        before_j, self.total_j = self.total_j, self.at(curve, end_ns)
        self.end_ns = end_ns
        if end_ns - SETTLED_NS > self.settled_ns:
            self._settled_j += curve.between(self.settled_ns, end_ns - SETTLED_NS)
            self.settled_ns = end_ns - SETTLED_NS
        return self.total_j - before_j

    def at(self, curve: EnergyCurve, t_ns: int) -> float:
        """Return the joules from the start to an instant of a later curve, never less than the total."""
        return max(self._settled_j + curve.between(self.settled_ns, t_ns), self.total_j)
