"""Joules of one meter while it runs, added up from curves that overlap."""

from __future__ import annotations

from torchwatt.core.curve import EnergyCurve
from torchwatt.core.units import NS_PER_S

SETTLED_NS = 2 * NS_PER_S  # readings that come this much later do not move a curve any more


class RunningEnergy:
    """Joules of one meter from an instant on.

    The end of a curve is provisional: it continues a counter from its last publications, and the next curve, which has
    more readings, dates them anew. So only what lies `SETTLED_NS` before the end of a curve is kept, and the rest is
    read again from the next curve; else the errors of the ends would add up. The total never goes back: what was too
    much is taken off what comes next.

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
        """Continue to an instant of a later curve; return the joules by which the total grew."""
        if curve.start_ns > self.settled_ns:  # this curve cannot say what was before its start
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
