"""What tracing may cost, what it has cost, and what follows for the next step. Pure: times are arguments."""

from __future__ import annotations

from collections import Counter
from typing import Literal

Account = Literal["fixed", "calls", "windows"]

# What the budget of this time allows may be spent in advance, so that a short run is labelled too; it is paid back.
HEAD_START_NS = 2_000_000_000
# The budget is for all of torchwatt: the sampler's process and what no clock of ours sees take the rest.
TRACING_SHARE = 0.7
# For what was never seen before, so many times what may be spent is lent: else its layers would have no figures at all.
OVERDRAFT = 3.0
WINDOW_OVERDRAFT = 1.0
LEAST_SHARE = 0.2  # of what tracing may spend, for looking closer, even where the fixed cost alone is too much
EARLY_STEPS = 3  # traced whatever they cost: nothing could be filled from nothing
WINDOW_SHARE = 0.6  # of what the fixed cost leaves, if there are backward calls; the rest is for traced steps
SLEEP_SHARE = 0.4  # of the budget: if noting the bounds of steps costs more, only their ends are noted
MOST_STEPS = 64  # traced between two decisions, which cost time too
MOST_BETWEEN_NS = 250_000_000  # between two decisions where short steps are not traced: more of them than that
DECISION_SHARE = 0.05  # of the budget, for decisions to go on without tracing
NARROW_SHARE = 0.25  # of the budget: if passing calls through costs more, the wrapper comes off between traced steps


class Budget:
    """Keep the cost of tracing under a share of the elapsed time.

    `fixed` is paid in every step whatever is decided (outermost calls, backward calls, optimizer hooks, the
    decision itself), `calls` by steps in which every module call is logged, `windows` by recorded backward calls.
    A step or a window is granted only if its predicted cost fits into what is left of `TRACING_SHARE` of `share` times
    the time elapsed; what the first `HEAD_START_NS` will allow is given in advance.

    Args:
        share: Of the elapsed time, from 0 to 1.
        start_ns: When the time begins to count.
    """

    def __init__(self, share: float, start_ns: int) -> None:
        self.share = share
        self.start_ns = start_ns
        self.spent_ns: Counter[Account] = Counter()
        self.traced_steps = 0
        self.steps = 0
        self.has_windows = False  # a backward call was seen, and windows are possible
        self.curious = False  # something new was seen that only a traced step can name

    def allowance_ns(self, now_ns: int) -> float:
        """Return what may have been spent up to now."""
        return TRACING_SHARE * self.share * max(now_ns - self.start_ns, HEAD_START_NS)

    @property
    def total_ns(self) -> int:
        """What was spent."""
        return self.spent_ns.total()

    def pay(self, account: Account, cost_ns: float) -> None:
        """Book a cost."""
        self.spent_ns[account] += round(cost_ns)

    def room_ns(self, account: Account, now_ns: int) -> float:
        """Return what an account may still spend: its part of what the fixed cost leaves, and never more than all."""
        part = WINDOW_SHARE if account == "windows" else 1 - WINDOW_SHARE if self.has_windows else 1.0
        return min(part * self._closer_ns(now_ns) - self.spent_ns[account], self._left_ns(now_ns))

    def lent_ns(self, now_ns: int) -> float:
        """Return what may be spent on a window of what none has shown; it is paid back."""
        return self._left_ns(now_ns) + WINDOW_OVERDRAFT * self._closer_ns(now_ns)

    def _closer_ns(self, now_ns: int) -> float:
        """Return what may be spent on looking closer, on all accounts but the fixed one."""
        allowance = self.allowance_ns(now_ns)
        return max(allowance - self.spent_ns["fixed"], LEAST_SHARE * allowance)

    def _left_ns(self, now_ns: int) -> float:
        return self._closer_ns(now_ns) - (self.total_ns - self.spent_ns["fixed"])

    def grants_step(self, cost_ns: float, now_ns: int) -> bool:
        """Say whether the next step is traced in full, at a predicted cost; to be asked once a step."""
        self.steps += 1
        if self.share <= 0:
            return False
        curious, self.curious = self.curious, False
        left = self._left_ns(now_ns) + OVERDRAFT * self._closer_ns(now_ns)
        granted = (
            self.traced_steps < EARLY_STEPS
            or cost_ns <= self.room_ns("calls", now_ns)
            or (curious and cost_ns <= left)  # what is new goes first, and is paid for later
        )
        self.curious = curious and not granted
        self.traced_steps += granted
        return granted

    def narrows(self, passing_ns: float, swap_ns: float, step_ns: float, every: float) -> bool:
        """Say whether the wrapper should come off between traced steps.

        Args:
            passing_ns: What calls that are let through cost in a step that is not traced.
            swap_ns: What taking the wrapper off and putting it on again costs.
            step_ns: Length of a step.
            every: One step in so many is traced.
        """
        return passing_ns > NARROW_SHARE * self.share * step_ns and passing_ns * every > swap_ns

    def must_sleep(self, light_ns: float, step_ns: float) -> bool:
        """Say whether noting the bounds of a step, at that cost, would take too much of the budget."""
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
        """Return how many steps may go by until another decision could be different.

        Args:
            cost_ns: What tracing a step costs.
            step_ns: Length of a step.
            now_ns: The time.
            traced: Whether these steps are traced.
            around_ns: What of that is spent once for all steps that are traced one after the other.
            decision_ns: What a decision costs: it is put off until it is worth that.
        """
        room, income_ns = self.room_ns("calls", now_ns), max(self.share * step_ns, 1.0)
        if traced:
            most = float(MOST_STEPS)
            each_ns = max(cost_ns - around_ns, 1.0)
            steps = max(room / 8 / max(cost_ns, 1.0), around_ns / each_ns) if self.traced_steps > EARLY_STEPS else 1.0
        else:
            most = max(MOST_STEPS, MOST_BETWEEN_NS / max(step_ns, 1.0))
            steps = max((cost_ns - room) / 2, decision_ns / DECISION_SHARE) / income_ns
        return round(min(max(steps, 1.0), most))
