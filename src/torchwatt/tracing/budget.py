"""Compute what tracing may cost, what it has cost, and what the next step may record. Pure: times are arguments."""

from __future__ import annotations

from collections import Counter
from typing import Literal

Account = Literal["fixed", "calls", "windows"]

# The budget of this time may be spent in advance, so that a short run is labelled too; it is paid back.
HEAD_START_NS = 2_000_000_000
# The budget is for all of torchwatt: the rest is for the sampler's process and costs that no clock here measures.
TRACING_SHARE = 0.7
# For work never recorded before, this multiple of the allowance may be overdrawn: its layers would have no figures
# otherwise.
OVERDRAFT = 3.0
WINDOW_OVERDRAFT = 1.0
LEAST_SHARE = 0.2  # of the tracing allowance, for full traces and windows, even where the fixed cost alone exceeds it
EARLY_STEPS = 3  # traced at any cost: filling needs a traced step
WINDOW_SHARE = 0.6  # of what the fixed cost leaves, where there are backward calls; the rest is for traced steps
SLEEP_SHARE = 0.4  # of the budget: where recording the bounds of steps costs more, only their ends are recorded
MOST_STEPS = 64  # traced between two decisions, which cost time too
MOST_BETWEEN_NS = 250_000_000  # between two decisions where steps are short and not traced: allows more than MOST_STEPS
DECISION_SHARE = 0.05  # of the budget, for decisions not to trace
NARROW_SHARE = 0.25  # of the budget: where calls that pass the wrapper cost more, it is removed between traced steps


class Budget:
    """Keep the cost of tracing under a share of the elapsed time.

    `fixed` is paid in every step (outermost calls, backward calls, optimizer hooks, the decision itself), `calls` by
    steps in which every module call is logged, `windows` by recorded backward calls.
    A step or a window is granted only if its predicted cost fits into the remainder of `TRACING_SHARE` of `share` times
    the time elapsed; the allowance of the first `HEAD_START_NS` is available in advance.

    Args:
        share: Of the elapsed time, from 0 to 1.
        start_ns: Start of the elapsed time.
    """

    def __init__(self, share: float, start_ns: int) -> None:
        self.share = share
        self.start_ns = start_ns
        self.spent_ns: Counter[Account] = Counter()
        self.traced_steps = 0
        self.steps = 0
        self.has_windows = False  # there was a backward call, and windows are possible
        self.curious = False  # there is work that only a traced step can name

    def allowance_ns(self, now_ns: int) -> float:
        """Return what may have been spent by now, in ns."""
        return TRACING_SHARE * self.share * max(now_ns - self.start_ns, HEAD_START_NS)

    @property
    def total_ns(self) -> int:
        """The sum of all accounts, in ns."""
        return self.spent_ns.total()

    def pay(self, account: Account, cost_ns: float) -> None:
        """Book a cost."""
        self.spent_ns[account] += round(cost_ns)

    def room_ns(self, account: Account, now_ns: int) -> float:
        """Return what an account may still spend: its part of what the fixed cost leaves, at most the remainder."""
        part = WINDOW_SHARE if account == "windows" else 1 - WINDOW_SHARE if self.has_windows else 1.0
        return min(part * self._closer_ns(now_ns) - self.spent_ns[account], self._left_ns(now_ns))

    def lent_ns(self, now_ns: int) -> float:
        """Return what may be spent on a window of work that no window has recorded; an overdraft is paid back."""
        return self._left_ns(now_ns) + WINDOW_OVERDRAFT * self._closer_ns(now_ns)

    def _closer_ns(self, now_ns: int) -> float:
        """Return what may be spent on all accounts but the fixed one."""
        allowance = self.allowance_ns(now_ns)
        return max(allowance - self.spent_ns["fixed"], LEAST_SHARE * allowance)

    def _left_ns(self, now_ns: int) -> float:
        return self._closer_ns(now_ns) - (self.total_ns - self.spent_ns["fixed"])

    def grants_step(self, cost_ns: float, now_ns: int) -> bool:
        """Return whether the next step is traced in full, at a predicted cost; call once per decision."""
        self.steps += 1
        if self.share <= 0:
            return False
        curious, self.curious = self.curious, False
        affordable_ns = self._left_ns(now_ns) + OVERDRAFT * self._closer_ns(now_ns)
        granted = (
            self.traced_steps < EARLY_STEPS
            or cost_ns <= self.room_ns("calls", now_ns)
            or (curious and cost_ns <= affordable_ns)  # new work has precedence and is paid for later
        )
        self.curious = curious and not granted
        self.traced_steps += granted
        return granted

    def narrows(self, passing_ns: float, swap_ns: float, step_ns: float, every: float) -> bool:
        """Return whether the wrapper should be removed between traced steps.

        Args:
            passing_ns: Cost of calls that only pass the wrapper, in a step that is not traced.
            swap_ns: Cost of removing and restoring the wrapper.
            step_ns: Length of a step.
            every: Steps per traced step.
        """
        return passing_ns > NARROW_SHARE * self.share * step_ns and passing_ns * every > swap_ns

    def must_sleep(self, light_ns: float, step_ns: float) -> bool:
        """Return whether recording the bounds of a step, at that cost, would take too much of the budget."""
        return self.share > 0 and light_ns > SLEEP_SHARE * self.share * step_ns

    def steps_until_news(
        self,
        cost_ns: float,
        step_ns: float,
        now_ns: int,
        *,
        traced: bool,
        around_ns: float = 0.0,
        decision_ns: float = 0.0,
    ) -> int:
        """Return the number of steps until another decision could differ.

        Args:
            cost_ns: Cost of tracing a step.
            step_ns: Length of a step.
            now_ns: The time.
            traced: Whether these steps are traced.
            around_ns: The part of `cost_ns` that is spent once for all consecutive traced steps.
            decision_ns: Cost of a decision, which is postponed until that cost is affordable.
        """
        room, income_ns = self.room_ns("calls", now_ns), max(self.share * step_ns, 1.0)
        if traced:
            most_steps = float(MOST_STEPS)
            each_ns = max(cost_ns - around_ns, 1.0)
            steps = max(room / 8 / max(cost_ns, 1.0), around_ns / each_ns) if self.traced_steps > EARLY_STEPS else 1.0
        else:
            most_steps = max(MOST_STEPS, MOST_BETWEEN_NS / max(step_ns, 1.0))
            steps = max((cost_ns - room) / 2, decision_ns / DECISION_SHARE) / income_ns
        return round(min(max(steps, 1.0), most_steps))
