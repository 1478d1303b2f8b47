import numpy as np

from torchwatt.tracing.pacing import Pacer
from torchwatt.tracing.sampling import Sampling
from torchwatt.tracing.steps import first_optimizer_ends, steps_between

MS = 1_000_000


def run(kinds, budget=0.01, step_ns=10 * MS, cost_ns=2 * MS):
    pacer, taken = Pacer(budget, 0), []
    for i, kind in enumerate(kinds):
        if pacer.wants(kind, i * step_ns):
            pacer.paid(kind, cost_ns)
            taken.append(i)
    return taken, pacer


def test_the_second_third_and_fourth_calls_are_windows_then_the_budget_rules():
    taken, pacer = run(["a"] * 10_000)
    assert taken[:3] == [1, 2, 3]
    assert taken[3] >= 60  # 6 ms spent: 1 % of 600 ms
    assert pacer.cost_ns <= 0.01 * 10_000 * 10 * MS + 2 * MS


def test_kinds_take_turns():
    taken, _ = run(["d", "d", "g"] * 3000)
    by_kind = [sum(i % 3 == k for i in taken) for k in range(3)]
    assert abs(by_kind[0] + by_kind[1] - by_kind[2]) <= 4


def test_ever_new_kinds_do_not_break_the_budget():
    _, pacer = run(range(5000))
    assert pacer.cost_ns <= 0.01 * 5000 * 10 * MS + 8 * MS


def test_no_budget_no_windows():
    assert run(["a"] * 50, budget=0)[0] == []


def test_sampling_starts_at_the_limit_and_slows_down():
    sampling, spans, kept = Sampling(1000), 0, []
    light = False
    for step in range(20_000):
        spans += 1 if light else 100
        if not light:
            kept.append(step)
        light = sampling.after_step(spans)
    assert kept[:11] == list(range(11))
    assert 12 < len(kept) < 400
    assert sampling.period > 100


def test_a_step_begins_with_the_first_span_after_the_last_end():
    starts = np.array([5, 12, 13, 40])
    assert steps_between([10, 20, 30], starts, 0) == ((5, 10), (12, 20), (20, 30))


def test_only_the_first_optimizer_ends_steps():
    assert first_optimizer_ends([(20, 15, 2), (10, 8, 1), (30, 28, 1)]) == [10, 30]
    assert first_optimizer_ends([]) == []
