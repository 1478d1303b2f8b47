"""Decide what each step records: everything, or only its bounds. Pure: clock and counts are arguments."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from torchwatt.tracing.autograd_recorder import NO_MARGINS, HookMargins
from torchwatt.tracing.log_rows import ALL_CALLS, OUTERMOST, STEP_ENDS
from torchwatt.tracing.overhead_budget import OverheadBudget, OverheadEstimator, SpanLimit

RECENT_CALLS = 16
DENSE_WINDOWS = 128  # windows as dense as the budget allows; later ones are rarer, so that memory is bounded
SPARSE_GROWTH = 1.02  # each later one waits until the run is 2 % longer
MAX_KINDS = 10_000


class WindowScheduler:
    """Decide which backward calls get a window; kinds take turns.

    The first call gets none (it includes torch's lazy initialisation), the second always gets one, if there is a
    budget: without any window backward time cannot be attributed to layers.
    """

    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self._calls: Counter[Hashable] = Counter()
        self._windows: Counter[Hashable] = Counter()
        self._cost_ns: dict[Hashable, int] = {}
        self._recent: deque[Hashable] = deque(maxlen=RECENT_CALLS)
        self._seen = 0
        self._last_ns = start_ns

    def wants(self, kind: Hashable, now_ns: int, room_ns: float) -> bool:
        """Return whether this call should be recorded; call once for each backward call."""
        self._seen += 1
        self._calls[kind] += 1
        self._recent.append(kind)
        if len(self._calls) > MAX_KINDS:  # bounds memory
            self._calls.clear()
        if self._seen < 2:
            return False
        taken = self._windows.total()
        if taken == 0:
            return True
        elapsed, latest = now_ns - self._start_ns, self._last_ns - self._start_ns
        if taken >= DENSE_WINDOWS and elapsed < latest * SPARSE_GROWTH:
            return False
        return self._predicted_ns(kind) <= room_ns and self._is_due(kind)

    def _predicted_ns(self, kind: Hashable) -> int:
        return self._cost_ns.get(kind) or max(self._cost_ns.values(), default=0)

    def _is_due(self, kind: Hashable) -> bool:
        regulars = [k for k in set(self._recent) if self._calls[k] > 2]
        return self._windows[kind] <= min((self._windows[k] for k in regulars), default=0) + 1

    def paid(self, kind: Hashable, cost_ns: int, now_ns: int) -> None:
        """Record a window that was taken."""
        if len(self._windows) > MAX_KINDS:
            self._windows.clear()
            self._cost_ns.clear()
        self._windows[kind] += 1
        self._cost_ns[kind] = cost_ns
        self._last_ns = now_ns


# Costs in logged module calls (benchmarks/in_place.py); the decision itself is timed separately.
OUTERMOST_CALLS = 4.0  # an outermost call, an optimizer step, a batch of data
BACKWARD_CALLS = 10.0
HOOK_CALLS = 4.0  # the end of a step
STEP_END_CALLS = 5.5  # a step of which only the end is recorded, with its outermost call
INFERENCE_CALLS = 2.5  # a call without gradients of which only the bounds are recorded
PASSING_CALLS = 0.8  # a call inside another that passes the wrapper of its class
# Calls are calibrated in a loop; between matrix products caches are cold: in place (benchmarks/in_place.py) they
# take 2.6 times as long with 0.24 ms between two of them, and 4.0 to 4.3 times with 1.7 ms.
COLD_EXCESS, COLD_HALF_NS = 3.3, 250_000.0
# Among steps recorded by their ends only, some have their bounds recorded: these show how such steps are divided into
# forward, backward, optimizer and the rest.
FIRST_SKELETONS, SKELETONS = 16, 12
SKELETON_SHARE = 0.2  # of the budget, for them and the decisions around them
# The first steps of a program are not representative: caches and kernels are cold, and denormal gradients take 50 times
# as long. At this step another one is traced and recorded early, as a template for the others.
WARM_STEP = 8
# Logging a call with its shapes takes 2.5 times as long (`TracingCosts.shapes_factor`): a part of traced steps does.
FIRST_SHAPE_STEPS, SHAPE_STEP_SHARE = 3, 0.25
RELATIVE_SPREAD = (
    0.4  # random relative spread of stride lengths: sampling must not coincide with a period of the program
)
COUNTING_SHARE = 0.5  # of the budget, for counting modules that a program may or may not call
MOST_KINDS = 32  # of backward calls whose lengths are compared
CHECK_EVERY = 8  # traced steps between two updates from the observed cost
# A window costs more than its own clocks show: recording slows the call down and leaves cold caches. Steps with and
# without, in random order and by CPU time, gave 1.0 (a transformer, 346 nodes) and 2.2 (a CNN, 39 nodes) times as much;
# the prior is 2 +- 1, until a session has measured it.
AFTERMATH, AFTERMATH_SD, MOST_AFTERMATH = 2.0, 1.0, 4.0


@dataclass(slots=True)
class TracingCosts:
    """Costs of tracing on this machine, in ns: calibrated at the start, raised by observation.

    Costs measured `in_a_loop` are higher in a step, the more so the longer the time between two calls.
    """

    call_ns: float  # logging one module call
    passing_ns: float  # letting one pass through the wrapper in a step that is not traced
    swap_ns: float = 400_000.0  # removing and restoring the wrapper; updated when that happens
    shapes_factor: float = 1.0  # logging a call with its shapes, relative to one without
    factor: float = 1.0  # observed over calibrated, never below 1
    decision_ns: float = 0.0  # moving average
    in_a_loop: bool = False
    margins: HookMargins = NO_MARGINS

    def dearer(self, between_ns: float) -> float:
        """Return the cost of a call relative to calibration, with a time between two calls; at least 1."""
        return 1.0 + COLD_EXCESS * between_ns / (between_ns + COLD_HALF_NS) if self.in_a_loop else 1.0


@dataclass(slots=True)
class StepBatch:
    """The steps of a thread between two decisions, and statistics of its steps."""

    start_ns: int
    mode: int = ALL_CALLS
    first_row: int = 0
    own_rows: int = 0  # rows since the decision that are profiler work
    steps: int = 0  # ended since the decision
    answered: int = 0  # of these, calls without gradients of which only the bounds were recorded
    planned: int = 1  # number of steps until the next decision
    windowed: bool = False
    shapes: bool = True  # those of traced calls are read as well
    skeleton: bool = False  # their bounds are recorded, as templates for steps of which only the end is
    seq: int = 0  # autograd's sequence number after the latest backward call
    backwards: int = 0
    light_steps: int = 0  # not traced, since the log was folded
    calls: int = 0  # logged in a traced step
    rows: int = 0  # the same, with profiler work
    passing: int = 0  # of these, inside another and of a class that is patched
    step_ns: float = 0.0  # moving average
    cpu_ns: int | None = None  # the thread's CPU time at the decision; None: unknown
    window_ns: int = 0  # of the window in these steps, by its own clocks
    observed: OverheadEstimator = field(default_factory=OverheadEstimator)
    aftermath: OverheadEstimator = field(default_factory=OverheadEstimator)  # traced steps with a window, and without

    def leave_out(self, wall_ns: int, cpu_ns: int) -> None:
        """Exclude time that does not recur, such as a compilation, from the length of these steps."""
        self.start_ns += wall_ns
        if self.cpu_ns is not None:
            self.cpu_ns += cpu_ns


class TracingPolicy:
    """Account for the cost of one session's tracing and decide what the next steps record.

    Args:
        share: Of the time, for everything that tracing does on the user's threads.
        windows: Whether backward calls may be recorded.
        max_spans: Limit of spans in memory; near it, steps are traced more rarely.
        start_ns: Start of the session.
        costs: As calibrated.
    """

    def __init__(self, share: float, *, windows: bool, max_spans: int, start_ns: int, costs: TracingCosts) -> None:
        self.budget = OverheadBudget(share, start_ns)
        self.costs = costs
        self.limit = SpanLimit(max_spans, start_ns)
        self.limited = False
        self.narrow = False  # the wrapper should be off between traced steps
        self.can_narrow = True
        self.unwrapped = False  # it was removed before the latest decision
        self.pacer = WindowScheduler(start_ns) if windows else None
        self._checked = 0
        self._backwards: dict[Hashable, OverheadEstimator] = {}
        self._aftermath = AFTERMATH
        self._skeletons = 0
        self._skeleton_ns = start_ns  # earliest time of the next one
        self._steps = 0  # decided on
        self._shape_steps = 0  # decisions to read shapes
        self._wants_warm = False  # record a backward call of the next traced step, as the first warm one
        self._random = random.Random(start_ns)  # noqa: S311 - of our own: the user's numbers stay as they are

    def decide(
        self, stride: StepBatch, now_ns: int, rows: int, spans: int, *, can_sleep: bool, cpu_ns: int | None = None
    ) -> int:
        """Book the cost of the steps since the last decision and return the mode of the next ones.

        Args:
            stride: Of the thread of these steps; updated.
            now_ns: The time.
            rows: Number of rows that the thread has logged.
            spans: Number of rows that all threads keep.
            can_sleep: Whether the thread detects the end of its steps when only ends are recorded.
            cpu_ns: The CPU time of the thread: time taken by other programs is no cost of tracing.
        """
        n = max(stride.steps, 1)
        self._look_when_warm(stride, n)
        logged, length = (rows - stride.first_row) / n, (now_ns - stride.start_ns) / n
        new = logged - stride.own_rows / n
        self._pay(stride, new, n)
        self._compare(stride, n, length if cpu_ns is None or stride.cpu_ns is None else (cpu_ns - stride.cpu_ns) / n)
        stride.step_ns += (length - stride.step_ns) * (0.1 if stride.step_ns else 1.0)
        if stride.mode == ALL_CALLS:
            stride.calls, stride.rows = round(new), round(logged)
            self._check(stride)
        else:
            stride.light_steps += n
        cost_ns = self._traced_ns(stride)
        traced = self.budget.grants_step(cost_ns, now_ns)
        if traced and not self.limit.allows(spans, now_ns):
            traced, self.limited = False, True
        light_ns = self._light_ns(stride)
        self._narrow(stride, cost_ns)
        asleep = can_sleep and self.budget.must_sleep(light_ns, stride.step_ns)
        stride.start_ns, stride.first_row, stride.own_rows = now_ns, rows, 0
        stride.skeleton = asleep and not traced and now_ns >= self._skeleton_ns
        stride.mode = ALL_CALLS if traced else STEP_ENDS if asleep and not stride.skeleton else OUTERMOST
        stride.windowed, stride.backwards, stride.steps, stride.answered = False, 0, 0, 0
        stride.cpu_ns, stride.window_ns = cpu_ns, 0
        stride.planned = self._planned(stride, cost_ns, light_ns, now_ns)
        if traced:
            stride.shapes = self._reads_shapes()
            stride.planned = max(min(stride.planned, (self.limit.max_spans - spans) // max(stride.rows, 1)), 1)
        return stride.mode

    def _reads_shapes(self) -> bool:
        """Return whether the traced steps that begin read the shapes of their calls: a part, chosen at random."""
        reads = (
            self.budget.share >= 1 or self._shape_steps < FIRST_SHAPE_STEPS or self._random.random() < SHAPE_STEP_SHARE
        )
        self._shape_steps += reads
        return reads

    def _look_when_warm(self, stride: StepBatch, steps: int) -> None:
        """Request a trace of the first warm step; `steps` is the number of steps that ended in the current stride."""
        if stride.mode == ALL_CALLS:
            self._wants_warm = False
        if self._steps < WARM_STEP <= self._steps + steps:
            self.budget.curious = self._wants_warm = True
        self._steps += steps

    def show_again(self) -> None:
        """Record bounds of steps again: new work may have changed how steps are divided."""
        self._skeletons, self._skeleton_ns = 0, 0

    def _planned(self, stride: StepBatch, cost_ns: float, light_ns: float, now_ns: int) -> int:
        """Return the number of steps until the next decision."""
        if stride.skeleton:
            steps = SKELETONS if self._skeletons else FIRST_SKELETONS
            self._skeletons += steps
            spent_ns = SKELETONS * light_ns + 2 * self.costs.decision_ns
            self._skeleton_ns = now_ns + round(spent_ns / (SKELETON_SHARE * self.budget.share))
            return self._until_warm(steps)
        steps = self.budget.steps_until_news(
            cost_ns, stride.step_ns, now_ns,
            traced=stride.mode == ALL_CALLS, around_ns=self._around_ns(), decision_ns=self.costs.decision_ns,
        )  # fmt: skip
        if stride.mode != ALL_CALLS and steps >= 4:
            steps = round(steps * self._random.uniform(1 - RELATIVE_SPREAD, 1 + RELATIVE_SPREAD))
        return self._until_warm(steps)

    def _until_warm(self, steps: int) -> int:
        """Return the number of steps until the first warm step, which is traced; at most `steps`."""
        remaining = WARM_STEP - self._steps
        return min(steps, remaining) if remaining > 0 else steps

    def decided(self, own_ns: int, *, traced: bool) -> None:
        """Book the cost of a decision; `traced`: steps before or after it are traced, which made it necessary."""
        self.budget.pay("calls" if traced else "fixed", own_ns)
        self.costs.decision_ns += (own_ns - self.costs.decision_ns) * (0.1 if self.costs.decision_ns else 1.0)

    def wants_window(self, stride: StepBatch, kind: Hashable, now_ns: int, *, is_new: bool = False) -> bool:
        """Return whether a backward call is to be recorded; call once for each.

        Args:
            stride: Of the thread that makes the call.
            kind: Calls of one kind fill each other.
            now_ns: The time.
            is_new: It contains modules that no recorded call contains.
        """
        self.budget.has_windows = self.pacer is not None
        if self.pacer is None or self.budget.share <= 0:
            return False
        lends = is_new or self._wants_warm
        room_ns = self.budget.lent_ns(now_ns) if lends else self.budget.room_ns("windows", now_ns)
        is_due = self.pacer.wants(kind, now_ns, room_ns)
        self._wants_warm &= not is_due
        stride.windowed |= is_due
        if is_due:
            stride.planned = min(stride.planned, stride.steps + 1)
        return is_due

    def backward_took(self, kind: Hashable, length_ns: int, *, recorded: bool) -> None:
        """Record how long a backward call took, in a window or not."""
        if kind not in self._backwards and len(self._backwards) >= MOST_KINDS:
            self._backwards.clear()
        self._backwards.setdefault(kind, OverheadEstimator()).add(length_ns, traced=recorded)

    def slowdown_ns(self, kind: Hashable) -> float:
        """Return a lower bound of how much windows slow such calls down, in ns; 0 with too few observations."""
        durations = self._backwards.get(kind)
        return durations.excess_ns() if durations is not None else 0.0

    def window_taken(self, stride: StepBatch, kind: Hashable, own_ns: int, now_ns: int) -> int:
        """Book a window of `own_ns` by its own clocks; return its cost in ns with all after-effects."""
        stride.window_ns += own_ns
        cost_ns = round(self._aftermath * own_ns)
        self.budget.pay("windows", cost_ns)
        if self.pacer is not None:
            self.pacer.paid(kind, cost_ns, now_ns)
        return cost_ns

    def _compare(self, stride: StepBatch, n: int, used_ns: float) -> None:
        """Record how long a step took, by what was recorded in it."""
        if not stride.windowed:
            stride.observed.add(round(used_ns), traced=stride.mode == ALL_CALLS)
        if stride.mode == ALL_CALLS and n == 1 and stride.windowed == bool(stride.window_ns):
            stride.aftermath.add(round(used_ns), traced=stride.windowed)
        if own_ns := stride.window_ns:
            likely_ns = stride.aftermath.likely_ns(AFTERMATH * own_ns, AFTERMATH_SD * own_ns)
            self._aftermath = min(max(likely_ns / own_ns, 1.0), MOST_AFTERMATH)

    def margins(self, stride: StepBatch) -> HookMargins:
        """Return the time that torch takes around optimizer steps and backward calls of a thread."""
        return self.costs.margins.times(self._dearer(stride))

    def most_counted(self, stride: StepBatch, calls: int) -> float:
        """Return how many calls per step may pass a counting wrapper, for steps with that many calls in all."""
        between_ns = stride.step_ns / max(calls, 1)
        each_ns = PASSING_CALLS * self.costs.call_ns * self.costs.dearer(between_ns)
        return COUNTING_SHARE * self.budget.share * stride.step_ns / each_ns if self.budget.share > 0 else 0.0

    def _dearer(self, stride: StepBatch) -> float:
        return self.costs.dearer(stride.step_ns / max(stride.calls, 1))

    def call_ns(self, stride: StepBatch) -> float:
        """Return the cost of logging one call in a thread's steps, in ns."""
        return self.costs.call_ns * self._dearer(stride)

    def _passing_ns(self, stride: StepBatch) -> float:
        return stride.calls * self.costs.passing_ns * self._dearer(stride)

    def _pay(self, stride: StepBatch, rows: float, n: int) -> None:
        call_ns, answers = self.call_ns(stride), min(stride.answered, n)
        rows = max(rows * n - answers, 0.0) / max(n - answers, 1)  # per remaining step
        if stride.mode == ALL_CALLS:
            fixed = (HOOK_CALLS + stride.backwards / n * BACKWARD_CALLS + stride.passing * PASSING_CALLS) * call_ns
            self.budget.pay("calls", n * rows * self._logging_ns(stride, float(stride.shapes)))
        elif stride.mode == OUTERMOST:
            fixed = self._light_ns(stride, rows, stride.backwards / n)
        else:
            fixed = (STEP_END_CALLS + stride.passing * PASSING_CALLS) * call_ns
        each_ns = (INFERENCE_CALLS + stride.passing * PASSING_CALLS) * call_ns
        self.budget.pay("fixed", (n - answers) * fixed + answers * each_ns)

    def _light_ns(self, stride: StepBatch, rows: float = 2.0, backwards: float = 1.0) -> float:
        calls = HOOK_CALLS + rows * OUTERMOST_CALLS + backwards * BACKWARD_CALLS + stride.passing * PASSING_CALLS
        return calls * self.call_ns(stride) + (0.0 if self.narrow else self._passing_ns(stride))

    def _traced_ns(self, stride: StepBatch) -> float:
        return stride.calls * self._logging_ns(stride, SHAPE_STEP_SHARE) + self._around_ns()

    def _logging_ns(self, stride: StepBatch, shape_share: float) -> float:
        """Return the cost of logging one call in ns, as observed; of a part of the calls, 0 to 1, shapes are read."""
        shapes_factor = 1.0 + (self.costs.shapes_factor - 1.0) * shape_share
        return self.call_ns(stride) * self.costs.factor * shapes_factor

    def _around_ns(self) -> float:
        """Return the cost before and after consecutive traced steps, independent of their number, in ns."""
        return 2 * self.costs.decision_ns + (self.costs.swap_ns if self.unwrapped else 0.0)

    def _check(self, stride: StepBatch) -> None:
        """Raise the cost factor to the observed cost; not below the calibration, since a lower value may be chance."""
        self._checked += 1
        if self._checked % CHECK_EVERY == 0 and (booked_ns := stride.calls * self.call_ns(stride)) > 0:
            excess_ratio = stride.observed.excess_ns() / booked_ns
            self.costs.factor = max(excess_ratio, 1.0)

    def _narrow(self, stride: StepBatch, cost_ns: float) -> None:
        income_ns = max(self.budget.share * stride.step_ns, 1.0)
        passing_ns = self._passing_ns(stride)
        every = max(cost_ns / income_ns, 1.0)
        narrow = self.budget.narrows(passing_ns, self.costs.swap_ns, stride.step_ns, every)
        self.narrow = self.can_narrow and narrow
