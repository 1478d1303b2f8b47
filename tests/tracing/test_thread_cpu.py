"""Threads that run at the same time share the joules by their CPU time."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchwatt as tw
from tests.support.worlds import MS
from torchwatt.attribution.owned_intervals import cut_by_owner
from torchwatt.core.trace import Span, trace_from_spans
from torchwatt.tracing.overhead_budget import ThreadCpuTime
from torchwatt.tracing.trace_builder import busy_between


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=4), st.integers(0, 30))
def test_weights_follow_cpu_time_and_add_up_to_one(busy, late_ms):
    spans = [Span(f"t{n}", "forward", n * late_ms * MS, 200 * MS, thread=n) for n in range(len(busy))]
    trace = replace(trace_from_spans(spans), thread_busy=tuple(busy))
    cut = cut_by_owner(trace, 0, 250 * MS)
    for at in np.unique(cut.start_ns):
        assert cut.weight[cut.start_ns == at].sum() == pytest.approx(1.0)
    last = cut.start_ns == max(start for start in cut.start_ns.tolist() if start < 200 * MS)
    floor = np.maximum(busy, 1e-3)
    weight = dict(zip(cut.slot[last].tolist(), cut.weight[last].tolist(), strict=True))
    assert [weight[n] for n in range(len(busy))] == pytest.approx((floor / floor.sum()).tolist())


def test_threads_of_which_nothing_is_known_share_evenly():
    spans = [Span("a", "forward", 0, 10, thread=0), Span("b", "forward", 0, 10, thread=1)]
    assert cut_by_owner(trace_from_spans(spans), 0, 10).weight.tolist() == [0.5, 0.5]


def test_a_thread_that_works_between_its_spans_has_its_share_beside_the_spans_of_others():
    spans = [Span("a", "forward", at, at + 10, thread=0) for at in range(0, 100, 10)]
    spans += [Span("b", "forward", at, at + 6, thread=1) for at in range(0, 100, 20)]
    trace = replace(trace_from_spans(spans), thread_busy=(0.5, 0.5), thread_between=(0.0, 0.25))
    cut = cut_by_owner(trace, 0, 100)
    seconds = dict.fromkeys((-1, 0, 1), 0.0)
    for slot, length, weight in zip(cut.slot.tolist(), cut.end_ns - cut.start_ns, cut.weight, strict=True):
        seconds[slot] += length * weight
    between_ns = 4 * 14  # from the end of a call of b to the start of the next
    assert seconds == {-1: pytest.approx(between_ns / 3), 0: pytest.approx(85 - between_ns / 3), 1: pytest.approx(15)}
    assert (seconds[-1] + seconds[0] + seconds[1]) == pytest.approx(100)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(2, 30))
def test_the_use_between_spans_is_found_from_readings_at_their_bounds(inside, between, count):
    step_ns, span_ns = 1_000_000, 700_000
    starts = np.arange(count) * step_ns
    each = np.column_stack((np.full(count, round(inside * span_ns)), np.full(count, round(between * 300_000))))
    used = np.concatenate(([0], np.cumsum(each.ravel())))[: 2 * count]
    readings = np.column_stack((np.column_stack((starts, starts + span_ns)).ravel(), used))
    found = busy_between(starts, starts + span_ns, readings)
    assert found == pytest.approx(between, abs=1e-5)
    assert busy_between(starts, starts + span_ns, readings[::2]) == 0.0  # none tells them apart


def test_the_cpu_time_of_a_thread_is_known_to_others_and_after_its_end():
    found, told, go = [], threading.Event(), threading.Event()

    def work():
        found.append(ThreadCpuTime(threading.get_native_id()))
        end_ns = time.thread_time_ns() + 30 * MS
        while time.thread_time_ns() < end_ns:
            pass
        told.set()
        go.wait()

    thread = threading.Thread(target=work)
    thread.start()
    told.wait()
    seen_ns = found[0].until_now_ns()
    go.set()
    thread.join()
    assert seen_ns is None or 29 * MS < seen_ns < 60 * MS


class Spinning(torch.nn.Module):
    def forward(self, x):
        end_ns = time.thread_time_ns() + 10 * MS
        while time.thread_time_ns() < end_ns:
            pass
        return x


def spin_ms(ms):
    end_ns = time.thread_time_ns() + ms * MS
    while time.thread_time_ns() < end_ns:
        pass


@pytest.mark.alone  # shares of CPU time
def test_the_work_of_a_thread_between_its_modules_is_no_modules(powercap):
    busy, seldom = (Spinning() for _ in range(2))
    done, calls = threading.Event(), []

    def compute():
        while not done.is_set():
            busy(torch.ones(1))
            calls.append(10)

    def prepare():
        for _ in range(20):
            seldom(torch.ones(1))
            spin_ms(40)
        done.set()

    with tw.profile([busy, seldom], powercap_root=powercap.root) as run:
        threads = [threading.Thread(target=target) for target in (compute, prepare)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    layers = run.layers[run.layers.domain.str.startswith("cpu") & (run.layers.fqn != "(profiler)")]
    in_modules = layers[layers.phase == "forward"].energy_self_j.sum() / layers.energy_self_j.sum()
    assert in_modules == pytest.approx((sum(calls) + 20 * 10) / (sum(calls) + 20 * 50), abs=0.1), layers


class Waiting(torch.nn.Module):
    def forward(self, x):
        time.sleep(0.01)
        return x


@pytest.mark.alone  # waiting is told from working by CPU time
def test_a_thread_that_waits_has_less_of_the_joules_than_one_that_works(powercap):
    works, waits, stop = Spinning(), Waiting(), threading.Event()

    def serve():
        while not stop.is_set():
            waits(torch.ones(1))

    with tw.profile([works, waits], powercap_root=powercap.root) as run:
        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(60):
            works(torch.ones(1))
        stop.set()
        thread.join()
    layers = run.layers[run.layers.domain.str.startswith("cpu")].groupby("module_class").energy_self_j.sum()
    assert layers["Waiting"] < 0.3 * layers["Spinning"], layers
