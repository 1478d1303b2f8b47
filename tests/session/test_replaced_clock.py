"""A program that replaces the clocks of `time`, as tools do that freeze time for tests."""

import time

import torchwatt as tw


def test_a_run_lasts_as_long_as_it_lasted_and_says_that_its_clock_was_replaced(monkeypatch):
    real, frozen = time.perf_counter, time.monotonic_ns()
    with tw.profile(layers="off") as run:
        begun = real()
        monkeypatch.setattr(time, "monotonic_ns", lambda: frozen)
        monkeypatch.setattr(time, "monotonic", lambda: frozen / 1e9)
        monkeypatch.setattr(time, "time", lambda: 1e9)
        monkeypatch.setattr(time, "time_ns", lambda: 10**18)
        while real() - begun < 0.5:
            pass
    monkeypatch.undo()
    assert run.report.duration_s >= 0.5
    assert "CLOCK_REPLACED" in {event.code for event in run.report.events}


def test_a_run_under_the_systems_clock_says_nothing(monkeypatch):
    with tw.profile(layers="off") as run:
        pass
    assert "CLOCK_REPLACED" not in {event.code for event in run.report.events}
