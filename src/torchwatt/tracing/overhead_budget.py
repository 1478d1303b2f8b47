"""Compute what tracing may cost, what it has cost, and what the next step may record. Pure: times are arguments."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from math import hypot
from pathlib import Path
from statistics import median
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
STEP_END_SHARE = 0.4  # of the budget: where recording the bounds of steps costs more, only their ends are recorded
MOST_STEPS = 64  # traced between two decisions, which cost time too
MOST_BETWEEN_NS = 250_000_000  # between two decisions where steps are short and not traced: allows more than MOST_STEPS
DECISION_SHARE = 0.05  # of the budget, for decisions not to trace
NARROW_SHARE = 0.25  # of the budget: where calls that pass the wrapper cost more, it is removed between traced steps


class OverheadBudget:
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
        return self.share > 0 and light_ns > STEP_END_SHARE * self.share * step_ns

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


INTERVAL_FACTOR = 4


class SpanLimit:
    """Decide whether a step that the budget grants may be traced, given the number of spans in memory.

    Beyond `max_spans` the mean time between traced steps is four times what it was before; each further eighth of
    `max_spans` quadruples it, so that spans grow with the logarithm of time. The interval is in time, not steps: a
    refused step costs nothing, so the budget would grant the next one instead.
    """

    def __init__(self, max_spans: int, start_ns: int) -> None:
        self.max_spans = max_spans
        self.rarer = 1  # factor on the interval before the limit
        self._limit = max_spans
        self._start_ns = self._last_ns = start_ns
        self._free = 0  # steps traced before the limit
        self._usual_ns = 0.0  # mean interval between them

    @property
    def message(self) -> str:
        """The message of the event."""
        return f"more than {self.max_spans} spans: steps are traced more rarely, the others are filled in"

    def allows(self, spans: int, now_ns: int) -> bool:
        """Return whether the next step may be traced."""
        if spans <= self.max_spans and self.rarer == 1:
            self._free += 1
            self._last_ns = now_ns
            return True
        if spans > self._limit:
            if self.rarer == 1:
                self._usual_ns = (now_ns - self._start_ns) / max(self._free, 1)
            self.rarer *= INTERVAL_FACTOR
            self._limit = spans + max(self.max_spans // 8, 1)
        if now_ns - self._last_ns < self.rarer * self._usual_ns:
            return False
        self._last_ns = now_ns
        return True


MOST_DURATIONS = 32
ENOUGH_DURATIONS = 6  # durations of each kind needed for a comparison
MAD_TO_SD = 1.4826  # of a normal distribution
MEDIAN_TO_MEAN = 1.2533  # the standard error of a median over that of a mean: sqrt(pi / 2)
Z95 = 1.645  # one-sided


class OverheadEstimator:
    """Recent durations with and without tracing, and estimates of the cost of tracing."""

    def __init__(self) -> None:
        self._plain: deque[int] = deque(maxlen=MOST_DURATIONS)
        self._traced: deque[int] = deque(maxlen=MOST_DURATIONS)

    def add(self, duration_ns: int, *, traced: bool) -> None:
        """Record the duration of one piece of work."""
        (self._traced if traced else self._plain).append(duration_ns)

    def excess_ns(self) -> float:
        """Return the lower 95 % bound of traced minus plain, of medians, in ns; 0 with too few durations."""
        if min(len(self._plain), len(self._traced)) < ENOUGH_DURATIONS:
            return 0.0
        plain, plain_se = _median(self._plain)
        traced, traced_se = _median(self._traced)
        return max(traced - plain - Z95 * hypot(plain_se, traced_se), 0.0)

    def likely_ns(self, expected_ns: float, sd_ns: float) -> float:
        """Return the posterior mean of the cost of tracing: a normal prior, updated with traced minus plain.

        Two normal distributions weighted by their precision (Gelman et al., Bayesian Data Analysis, 3rd ed., 2.5).
        """
        if min(len(self._plain), len(self._traced)) < ENOUGH_DURATIONS:
            return expected_ns
        plain, plain_se = _median(self._plain)
        traced, traced_se = _median(self._traced)
        prior, likelihood = sd_ns**-2, max(plain_se**2 + traced_se**2, 1.0) ** -1
        return (prior * expected_ns + likelihood * (traced - plain)) / (prior + likelihood)

    def plain_ns(self) -> float:
        """Return the median untraced duration in ns, else the traced one, else 0."""
        return float(median(self._plain or self._traced or (0,)))


def _median(values: deque[int]) -> tuple[float, float]:
    middle = median(values)
    spread = MAD_TO_SD * median(abs(value - middle) for value in values)
    return float(middle), float(MEDIAN_TO_MEAN * spread / len(values) ** 0.5)


_FINE_S = 1e-5  # Windows measures thread time in steps of 15 ms


def thread_clock() -> Callable[[], int]:
    """Return the clock of thread CPU time; the monotonic clock where that is too coarse."""
    return time.thread_time_ns if time.get_clock_info("thread_time").resolution <= _FINE_S else time.monotonic_ns


class ThreadCpuTime:
    """CPU time of one thread since the object was made on it; other threads may read it.

    The thread keeps an `ThreadEndMarker` of it, which stores the time when the thread ends.
    """

    __slots__ = ("_begun_ns", "_native", "used_ns")

    def __init__(self, native: int) -> None:
        self._native = native
        self._begun_ns = time.thread_time_ns()
        self.used_ns: int | None = None  # set when the thread has ended

    def until_now_ns(self) -> int | None:
        """Return the CPU time so far, or up to the thread's end; None where the system does not provide it."""
        if self.used_ns is not None:
            return self.used_ns
        try:
            fields = Path(f"/proc/self/task/{self._native}/schedstat").read_bytes().split()
        except OSError:
            return None
        return max(int(fields[0]) - self._begun_ns, 0)

    def end(self) -> None:
        """Store the time so far; on the thread itself."""
        self.used_ns = time.thread_time_ns() - self._begun_ns


class ThreadEndMarker:
    """Kept only in a thread's local values, so that it is deleted when the thread ends, on that thread."""

    __slots__ = ("_cpu",)

    def __init__(self, cpu: ThreadCpuTime) -> None:
        self._cpu = cpu

    def __del__(self) -> None:
        self._cpu.end()


def affordable_modules(
    candidates: Sequence[Collection[int]],
    kind_of: Callable[[int], type | None],
    calls: Mapping[type, float],
    most_calls: float,
) -> set[int]:
    """Return the modules that can be counted: each call of any instance of a patched class passes its wrapper.

    Args:
        candidates: Keys, the most important ones first.
        kind_of: Class of a module; None if it was deleted.
        calls: Calls per step, by class.
        most_calls: Maximum number of calls per step that may pass a wrapper.
    """
    chosen: set[type] = set()
    chosen_keys: set[int] = set()
    for keys in candidates:
        kinds = {key: kind for key in keys if (kind := kind_of(key)) is not None}
        for kind in sorted(set(kinds.values()) - chosen, key=lambda kind: calls.get(kind, 0)):
            if calls.get(kind, 0) <= most_calls:
                most_calls -= calls.get(kind, 0)
                chosen.add(kind)
        chosen_keys |= {key for key, kind in kinds.items() if kind in chosen}
    return chosen_keys
