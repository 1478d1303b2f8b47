from collections import Counter

import numpy as np

from torchwatt.tracing.loop_steps import LoopStep, steps_between
from torchwatt.tracing.overhead_budget import SpanLimit
from torchwatt.tracing.tracing_policy import DENSE_WINDOWS, WindowScheduler

MS = 1_000_000


def run(kinds, share=0.006, step_ns=10 * MS, cost_ns=2 * MS):
    pacer, taken, spent = WindowScheduler(0), [], 0
    for i, kind in enumerate(kinds):
        now = i * step_ns
        if pacer.wants(kind, now, share * now - spent):
            pacer.paid(kind, cost_ns, now)
            spent += cost_ns
            taken.append(i)
    return taken, spent


def test_the_first_call_is_no_window_the_second_is_then_the_budget_rules():
    taken, spent = run(["a"] * 3000)
    assert taken[0] == 1
    assert taken[1] >= 66  # 4 ms spent by then: 0.6 % of 667 ms
    assert spent <= 0.006 * 3000 * 10 * MS


def test_kinds_take_turns():
    taken, _ = run(["d", "d", "g"] * 3000)
    by_kind = Counter("ddg"[i % 3] for i in taken)
    assert abs(by_kind["d"] - by_kind["g"]) <= 4


def test_ever_new_kinds_do_not_break_the_budget():
    _, spent = run(range(5000))
    assert spent <= 0.006 * 5000 * 10 * MS


def test_windows_become_rare_in_the_end_so_that_memory_stays_bounded():
    taken, _ = run(["a"] * 1_000_000)
    assert DENSE_WINDOWS < len(taken) < DENSE_WINDOWS + 500
    assert max(np.diff(taken)) < 0.03 * 1_000_000  # but are spread to the end


def test_sampling_starts_at_the_limit_and_slows_down():
    limit, spans, kept = SpanLimit(1000, 0), 0, []
    for step in range(200_000):
        # The budget grants one in ten, and the next one where that is refused.
        granted = step % 10 == 0 or step - kept[-1] >= 10
        if granted and limit.allows(spans, step * MS):
            kept.append(step)
            spans += 100
    free = [step for step in kept if step < 110]
    assert free == list(range(0, 110, 10))
    assert spans < 1000 + 8 * 1000  # twenty times as long without the limit gives two hundred times as many
    gaps = np.diff(kept)
    assert gaps[12] >= 30
    assert gaps[-1] >= 1_000


def test_a_step_begins_with_the_first_span_after_the_last_end():
    starts = np.array([5, 12, 13, 40])
    assert steps_between([(10, 1), (20, 1), (30, 2)], starts, 0) == [
        LoopStep(5, 10, 1),
        LoopStep(12, 20, 1),
        LoopStep(20, 30, 2),
    ]
