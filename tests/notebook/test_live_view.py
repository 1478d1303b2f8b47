"""The live view without a browser: what the thread sends while a program trains."""

import json
import time
from dataclasses import replace
from math import fsum

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchwatt as tw
from torchwatt.notebook.live_updater import MAX_PERIOD_S, MIN_PERIOD_S, UPDATE_SHARE, LiveUpdater, update_period_s
from torchwatt.views import LiveLayersView
from torchwatt.views.live_payload import MAX_LIVE_LAYERS


def network(blocks, width=8):
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(blocks)]
    )


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()


class Shown:
    """Stands for the place in the notebook; keeps the messages that its widget is sent."""

    def __init__(self, monkeypatch):
        self.messages = []
        monkeypatch.setattr("torchwatt.notebook.live_widget.LiveWidget", lambda _begin: self)

    def update(self, widget):
        assert widget is self

    def send(self, message):
        self.messages.append((time.monotonic_ns(), message))

    def end(self):
        pass


def table_j(payload):
    """Return the joules of all rows: what is in a parent stands in its total."""
    tops = [row for row in payload["layers"] if row["parent"] is None]
    return fsum(joules for row in tops for joules in row["total_j"].values()) + fsum(
        joules for row in payload["reserved"] for joules in row["self_j"].values()
    )


def test_each_message_has_steps_and_layers_come_with_joules_that_add_up(monkeypatch):
    model = network(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    shown = Shown(monkeypatch)
    with tw.profile(model, live="off") as run:
        beats = LiveUpdater(run, shown, None)
        for _ in range(6):
            train(model, optimizer, 15)
            beats._beat()
            time.sleep(0.25)
    assert beats.failures == []
    messages = [message for _, message in shown.messages]
    # Between two counts it is an estimate, which may be one too high.
    assert [message["steps"] for message in messages] == pytest.approx([15, 30, 45, 60, 75, 90], abs=1)
    assert all(message["t_s"] >= message["as_of_s"] for message in messages)
    with_layers = [message for message in messages if "layers_text" in message]
    assert with_layers
    for message in with_layers:
        layers = json.loads(message["layers_text"])
        assert layers["as_of_s"] <= message["t_s"]
        assert table_j(layers) <= message["energy_j"] * (1 + 1e-6)


def test_what_is_booked_to_a_module_never_becomes_less_and_adds_up_to_the_joules_of_that_instant():
    model = network(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before, as_of_s, view = {}, 0.0, LiveLayersView()
    with tw.profile(model, live="off", overhead_budget=1.0) as run:
        pulse = run.pulse()
        layers = run.live_layers(pulse)
        for _ in range(5):
            train(model, optimizer, 20)
            time.sleep(0.2)  # the meters answer
            pulse.update()
            layers.update(read=True)
            booked = {key: float(joules) for key, joules in enumerate(layers._booked_j.of_modules["forward"])}
            assert all(booked[key] >= joules for key, joules in before.items())
            before = booked
            sums = layers.sums()
            assert sums.as_of_s >= as_of_s
            as_of_s = sums.as_of_s
            t_ns = pulse.start_ns + round(as_of_s * 1e9)
            metered_j = fsum(pulse.energy_at(domain, t_ns) for domain in pulse.list_counted())
            assert sums.energy_j.sum() == pytest.approx(metered_j, rel=1e-6)
            assert table_j(json.loads(view.payload(sums)["layers_text"])) == pytest.approx(metered_j, rel=1e-3)
        layers.close()
    # No live row is better known than the rows of the report.
    settled = {entry.provenance for ledger in run.report.counted for entry in ledger.entries}
    assert {sums.provenance} == settled


def test_a_program_that_rests_is_shown_as_idle_and_its_layers_do_not_stay_behind(monkeypatch):
    monkeypatch.setattr("torchwatt.session.live_layers.OPEN_CALL_NS", 600_000_000)
    model = network(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tw.profile(model, live="off") as run:
        pulse = run.pulse()
        layers = run.live_layers(pulse)
        train(model, optimizer, 20)
        for _ in range(8):
            time.sleep(0.25)
            asked_s = (time.monotonic_ns() - pulse.start_ns) / 1e9
            pulse.update()
            layers.update(read=True)
        sums = layers.sums()
        assert asked_s - sums.as_of_s < 1.2  # the 2 s in which nothing ran would be missing
        resting = [name in {"(idle)", "(unattributed)"} for name in sums.names]
        assert sums.energy_j[:, resting].sum() > 0.5 * sums.energy_j.sum()
        layers.close()


def test_the_cost_of_the_view_comes_out_of_the_budget_of_tracing(monkeypatch):
    model = network(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tw.profile(model, live="off") as run:
        train(model, optimizer, 5)
        beats = LiveUpdater(run, Shown(monkeypatch), None)
        spent_ns = run._session.tracer._conductor.budget.total_ns
        beats._beat()
        assert run._session.tracer._conductor.budget.total_ns > spent_ns


def test_a_message_after_a_million_beats_is_as_small_as_one_after_a_thousand(monkeypatch):
    model = network(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    shown = Shown(monkeypatch)
    with tw.profile(model, live="off") as run:
        beats = LiveUpdater(run, shown, None)
        train(model, optimizer, 5)
        beats._beat()
        point = beats._pulse.points[-1]
        sizes = []
        for count in (1_000, 1_000_000):
            beats._pulse.points.extend(replace(point, t_s=point.t_s + 0.25 * n) for n in range(count))
            beats._count = 0  # the message that has the whole line
            beats._beat()
            sizes.append(len(json.dumps(shown.messages[-1][1])))
            kept = len(beats._pulse.points)
        beats.close()
    assert beats.failures == []
    assert max(sizes) < 20_000
    assert kept == len(shown.messages[-1][1]["points"]["t_s"]) == 240


def test_layers_are_shown_from_torchs_import_on(monkeypatch):
    model = network(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    shown = Shown(monkeypatch)
    with tw.profile(model, live="off") as run:
        tracing = run._session._tracing
        tracer, tracing.tracer = tracing.tracer, None
        beats = LiveUpdater(run, shown, None)
        beats._beat()
        tracing.tracer = tracer
        train(model, optimizer, 5)
        beats._beat()
        train(model, optimizer, 5)
        time.sleep(0.3)
        beats._beat()
        beats.close()
    assert beats.failures == []
    assert "steps" not in shown.messages[0][1]
    assert shown.messages[-1][1]["steps"] == pytest.approx(5, abs=1)


def test_the_browser_is_told_that_the_report_is_being_made(monkeypatch):
    shown = Shown(monkeypatch)
    with tw.profile(live="off") as run:
        LiveUpdater(run, shown, None).pause()  # nothing is shown yet
        assert shown.messages == []
        beats = LiveUpdater(run, shown, None)
        beats._beat()
        beats.pause()
        beats.close()
    assert [message["kind"] for _, message in shown.messages] == ["beat", "settling"]


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(("blocks", "steps"), [(250, 40), (2, 10_000)])
def test_work_is_bounded_for_a_thousand_modules_and_for_ten_thousand_steps(blocks, steps):
    """Count what an update goes through, not the time: the last tenth of a run costs no more than the second."""
    model = network(blocks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    touched = []
    with tw.profile(model, live="off") as run:
        pulse = run.pulse()
        layers = run.live_layers(pulse)
        for _ in range(20):
            train(model, optimizer, steps // 20)
            pulse.update()
            layers.update(read=True)
            touched.append(layers.touched)
        assert layers.steps == steps
        shown = json.loads(LiveLayersView().payload(layers.sums())["layers_text"])["layers"]
        assert len(shown) <= 2 * MAX_LIVE_LAYERS  # and what stands for the rest in each
        layers.close()
    assert max(touched[10:]) <= 2 * max(touched[2:10]) + 1_000


@given(st.floats(0.0, 1.0))
def test_updates_stay_within_their_share_of_a_cpu_and_figures_change_every_second(cost_s):
    period_s = update_period_s(cost_s)
    assert MIN_PERIOD_S <= period_s <= MAX_PERIOD_S <= 1
    assert cost_s <= UPDATE_SHARE * period_s * (1 + 1e-9) or period_s == MAX_PERIOD_S
    assert period_s == MIN_PERIOD_S or cost_s >= UPDATE_SHARE * period_s * (1 - 1e-9)  # not rarer than its cost demands
