"""Sums of what ran, kept up to date while it runs: what they add up to, and what keeping them costs."""

import time
from math import isclose

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchwatt.core.intervals import enclosing_array, enclosing_indices
from torchwatt.core.terms import PHASES, Slot
from torchwatt.tracing import Tracer
from torchwatt.tracing.loop_steps import LoopEvidence, OutermostCalls, steps_of
from torchwatt.tracing.tally_reader import MOST_ROUNDS, NewEntries, StepCounter, TimeSums


def block(width=8):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class Loop:
    """A small training loop; `gan` has two optimizers that take turns."""

    def __init__(self, blocks=3):
        self.model = nn.Sequential(*[block() for _ in range(blocks)])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 8)).square().mean().backward()
            self.optimizer.step()

    def evaluate(self, calls):
        with torch.no_grad():
            for _ in range(calls):
                self.model(torch.randn(4, 8))


def traced(loop, budget=0.01):
    tracer = Tracer(loop.model, overhead_budget=budget)
    tracer.start()
    return tracer, tracer.tally(time.monotonic_ns())


nested = st.recursive(st.just(()), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=12)


def intervals(tree, at=0):
    """Return the intervals of a tree of calls, outer before inner, and where the next one may begin."""
    found, now = [], at + 1
    for child in tree:
        inner, now = intervals(child, now)
        found += inner
    return [(at, now + 1), *found], now + 2


@given(st.lists(nested, max_size=4))
def test_what_encloses_an_interval_is_found_for_many_at_once_as_one_by_one(trees):
    both, at = [], 0
    for tree in trees:
        some, at = intervals(tree, at)
        both += some
    start, end = (np.array([each[i] for each in both], dtype=np.int64) for i in (0, 1))
    assert enclosing_array(start, end).tolist() == enclosing_indices(start.tolist(), end.tolist())


@st.composite
def loops(draw):
    """Return what was seen of a loop, in pieces: rounds of one or two optimizers, and evaluations between them."""
    t, pieces = 0, []
    optimizers = draw(st.sampled_from([(1,), (1, 2)]))
    trains = draw(st.booleans())
    for _ in range(draw(st.integers(1, 6))):
        calls, backward, ends = [], [], []
        for _ in range(draw(st.integers(0, 2 * MOST_ROUNDS))):
            for key in optimizers:
                t += 10
                calls.append((t, t + 2, True))
                backward.append((t + 3, t + 5))
                if trains:
                    ends.append((key, t + 8, 1))
        for _ in range(draw(st.integers(0, 5))):
            t += 10
            calls.append((t, t + 2, False))
        pieces.append((calls, backward, ends, t + 9))
    return pieces


def calls_of(calls):
    start, end, grown = (np.array([each[i] for each in calls]) for i in range(3)) if calls else (np.zeros(0),) * 3
    one = np.ones(len(calls), dtype=np.int64)
    return OutermostCalls(
        start.astype(np.int64), end.astype(np.int64), one, grown.astype(bool), one.astype(bool), one, one == 0
    )


def bounds(pairs):
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@given(loops())
def test_steps_counted_piece_by_piece_are_those_of_the_whole_loop(pieces):
    count, t = StepCounter(0), 0
    for calls, backward, ends, t in pieces:
        count.add(NewEntries(calls_of(calls), bounds(backward), bounds([]), [ends]), t)
        count.count()
        assert count.looked_at <= 12 * MOST_ROUNDS + 4 * (len(calls) + len(backward) + len(ends))
    calls, backward, ends = ([each for piece in pieces for each in piece[i]] for i in range(3))
    starts = np.sort(np.concatenate((calls_of(calls).start_ns, bounds(backward)[:, 0])))
    one = np.ones(len(backward), dtype=np.int64)
    again = np.zeros(len(backward), dtype=np.bool_)
    whole = LoopEvidence(0, t, starts, calls_of(calls), bounds(backward), one, again, [ends] if ends else ())
    assert count.count() == pytest.approx(sum(step.count for step in steps_of(whole)[0]), abs=1)


@pytest.mark.parametrize("budget", [1.0, 0.01])
def test_stretches_follow_one_another_and_are_as_long_as_what_ran_in_them(budget):
    loop = Loop()
    tracer, tally = traced(loop, budget)
    try:
        before_ns = None
        for _ in range(4):
            loop.train(20)
            stretch = tally.update(time.monotonic_ns())
            assert stretch is not None
            assert before_ns is None or stretch.start_ns == before_ns
            length_ns = stretch.end_ns - stretch.start_ns
            assert isclose(stretch.ns.total() + stretch.gap_ns, length_ns, rel_tol=1e-9)
            before_ns = stretch.end_ns
    finally:
        tracer.stop()


@pytest.mark.parametrize("budget", [1.0, 0.01, 0.0])
def test_steps_are_those_of_the_program_whatever_is_traced(budget):
    loop = Loop()
    tracer, tally = traced(loop, budget)
    for _ in range(6):
        loop.train(30)
        tally.update(time.monotonic_ns())
    loop.evaluate(30)
    loop.train(5)
    tally.update(time.monotonic_ns())
    tracer.stop()
    assert tally.steps == 6 * 30 + 30 + 5


def test_steps_between_two_updates_are_counted_without_reading():
    loop = Loop()
    tracer, tally = traced(loop)
    loop.train(100)
    tally.update(time.monotonic_ns())
    loop.train(57)
    touched = tally.touched
    assert tally.steps_now() == 157
    assert tally.touched == touched
    tally.update(time.monotonic_ns())
    assert tally.steps == 157
    tracer.stop()


@pytest.mark.parametrize("nested", [False, True])
def test_the_size_of_a_model_is_that_of_the_trace_wherever_the_model_is(nested):
    pair = nn.ModuleDict({"layer": nn.Linear(8, 8), "model": nn.Sequential(block(), block())})
    tracer = Tracer(pair if nested else None, overhead_budget=1.0)
    tracer.start()
    tally = tracer.tally(time.monotonic_ns())
    with torch.no_grad():
        pair["model"](pair["layer"](torch.randn(4, 8)))
    registry = tracer._hub.registry
    model = registry.by_id[id(pair["model"])]
    tally._main(np.array([model]))
    tracer.stop()
    assert tally._sizes == {model: sum(parameter.numel() for parameter in pair["model"].parameters())}


def test_calls_and_names_are_those_of_the_trace():
    loop = Loop()
    tracer, tally = traced(loop)
    calls, ns = TimeSums(), TimeSums()
    for _ in range(8):
        loop.train(50)
        stretch = tally.update(time.monotonic_ns())
        calls.add(stretch.calls)
        ns.add(stretch.ns)
    rows = tally.rows(ns)
    counts = {rows.names.of(key): count for key, count in enumerate(tally.calls_of(calls).tolist()) if count}
    table = rows.table(tally.spread(ns), {})
    slots = {
        Slot(name, phase): amount
        for phase, amounts in zip(PHASES, table.tolist(), strict=True)
        for name, amount in zip(rows.labels, amounts, strict=True)
        if amount
    }
    of_names = dict(zip(rows.labels, rows.calls(tally.calls_of(calls)).tolist(), strict=True))
    trace = tracer.stop()
    assert counts == dict.fromkeys(("(root)", "0", "1", "2", *(f"{i}.{j}" for i in range(3) for j in range(3))), 400)
    assert {name: of_names[name] for name in counts} == counts
    modules = {slot for slot in trace.slots if not slot.fqn.startswith("(")}
    assert {slot for slot in slots if not slot.fqn.startswith("(")} == modules
    assert isclose(sum(slots.values()), ns.total(), rel_tol=1e-9)


def test_an_update_goes_through_what_is_new_and_never_through_what_was_before():
    """The count of rows, calls and entries, not the time: a long run costs no more than a short one."""
    loop = Loop(blocks=2)
    tracer, tally = traced(loop)
    touched = []
    for _ in range(20):
        loop.train(50)
        tally.update(time.monotonic_ns())
        touched.append(tally.touched)
    tracer.stop()
    # A traced step has a row for each of 9 modules and a few more; of the last rounds three entries each.
    assert max(touched) <= 50 * 16 + 4 * (3 * MOST_ROUNDS + 3 * 50), touched
    assert np.mean(touched[15:]) <= 1.5 * np.mean(touched[3:8]) + 100, touched


def test_what_was_folded_before_it_was_read_is_read_all_the_same(monkeypatch):
    monkeypatch.setattr("torchwatt.tracing.step_controller.FOLD_STEPS", 64)
    loop = Loop(blocks=1)
    tracer, tally = traced(loop)
    loop.train(300)
    tally.update(time.monotonic_ns())
    assert tally.steps == 300
    calls = TimeSums()
    loop.train(100)
    calls.add(tally.update(time.monotonic_ns()).calls)
    assert tally.steps == 400
    tracer.stop()


def test_nothing_is_kept_for_a_tally_that_was_closed():
    loop = Loop(blocks=1)
    tracer, tally = traced(loop)
    loop.train(10)
    tally.update(time.monotonic_ns())
    tally.close()
    log = tracer._log
    assert log._readers == []
    tracer.stop()
