"""The parts of the live view, each by itself."""

import json
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reports import bare_report, live_sums, sample_report
from tests.views.test_answer import made_report
from torchwatt.core.trace import ModuleInfo
from torchwatt.notebook.run_history import HISTORY_MIME, MAX_RUNS, RunHistory, RunRecord
from torchwatt.session.live_rate import (
    CPU_SHARE,
    CREDIT_S,
    MAX_CPU_SHARE,
    MAX_INTERVAL_S,
    MIN_INTERVAL_S,
    CostLimiter,
)
from torchwatt.views import LiveLayersView, LivePoint, rate_payload, update_payload
from torchwatt.views.answer import answer


def record(number, **more):
    return RunRecord(f"id{number}", f"run <{number}>", more.pop("cell_id", "abc"), "complete", 1.5, 2.5, None, **more)


@given(st.lists(st.floats(0.0001, 1.0), min_size=1, max_size=60))
def test_work_is_never_more_than_its_share_and_never_late_where_it_costs_little(costs):
    pace, spent, last_s = CostLimiter(), 0.0, 0.0
    tick = 0
    for before, cost in zip([0.0, *costs], costs, strict=False):
        while not pace.due(tick / 4):
            tick += 1
        t_s = tick / 4
        pace.paid(t_s, cost)
        # The next cost is not known beforehand: shares hold for what was spent before.
        within = spent + before <= CREDIT_S + CPU_SHARE * t_s + 1e-9
        assert within or before <= MAX_CPU_SHARE * (t_s - last_s) + 1e-9
        assert t_s - last_s <= max(MAX_INTERVAL_S, before / MAX_CPU_SHARE) + 0.25
        assert t_s - last_s >= MIN_INTERVAL_S
        spent, last_s = spent + cost, t_s


def test_nothing_is_done_twice_within_a_second_and_what_is_dear_is_done_again_later():
    pace = CostLimiter()
    pace.paid(1.0, 0.001)
    assert not pace.due(1.0 + MIN_INTERVAL_S / 2)
    assert pace.due(1.0 + MIN_INTERVAL_S)
    pace.paid(10.0, 0.5)
    assert not pace.due(10.0 + 0.9 * 0.5 / MAX_CPU_SHARE)
    assert pace.due(10.0 + 0.5 / MAX_CPU_SHARE)


def test_what_a_look_only_happened_to_do_does_not_delay_the_next_one_for_a_minute():
    pace = CostLimiter()
    pace.paid(2.0, 0.2, typical=False)
    assert pace.due(2.0 + MAX_INTERVAL_S)
    pace.paid(6.0, 0.02)
    assert not pace.due(6.0 + 0.9 * 0.02 / MAX_CPU_SHARE)
    assert pace.due(6.0 + 0.02 / MAX_CPU_SHARE)


def test_the_history_keeps_the_latest_runs_and_says_a_run_once():
    history = RunHistory()
    for number in range(MAX_RUNS + 7):
        history.put(record(number))
        history.put(record(number))
    assert len(history) == MAX_RUNS
    assert next(iter(history)).run_id == "id7"


def test_the_history_is_text_html_and_a_payload_and_unknown_grams_are_a_dash():
    history = RunHistory()
    history.put(record(1))
    bundle = history._repr_mimebundle_()
    assert "run <1>  2.50 J  —" in bundle["text/plain"]
    assert 'href="#cell-id=abc"' in bundle["text/html"]
    assert "<1>" not in bundle["text/html"]
    assert json.loads(json.dumps(bundle[HISTORY_MIME]))["runs"][0]["carbon_g"] is None


def test_the_largest_groups_are_those_of_the_answer():
    report = sample_report()
    top = LiveLayersView().top_groups(live_sums(report))
    assert [name for name, _ in top][:2] == ["blocks.*.mlp", "blocks.*.attn"]
    assert answer(report).sentences[1].startswith(f"Most of it: {top[0][0]} {top[0][1]:.0%}".replace("%", " %"))
    assert [share for _, share in top] == sorted((share for _, share in top), reverse=True)
    assert LiveLayersView().top_groups(live_sums(bare_report())) == []


@pytest.mark.parametrize(
    ("classes", "name"),
    [
        ({str(i): "Block" for i in range(12)}, "all 12 Block modules"),
        ({"0": "Linear", "1": "GELU", "2": "Linear", "3": "GELU"}, "{0,2} (2 Linear)"),
        ({"0": "", "1": ""}, "all numbered modules"),
    ],
)
def test_groups_that_have_only_numbers_are_named_as_in_the_answer(classes, name):
    rows = [(fqn, 10.0 if kind == "GELU" else 20.0, 1.0) for fqn, kind in classes.items()]
    report = made_report(rows, modules=[ModuleInfo(fqn, kind) for fqn, kind in classes.items() if kind])
    view = LiveLayersView()
    assert view.top_groups(live_sums(report))[0][0] == name
    assert view.payload(live_sums(report))["top"][0][0] == name
    assert f"Most of it: {name} " in answer(report).text


def test_a_rate_is_text_and_none_before_the_first_unit():
    assert rate_payload("token", 0.00116) == {"rate": {"label": "per token", "text": "1.16 mJ"}}
    assert rate_payload("output token", 0.0351, 28.44) == {
        "rate": {"label": "per output token", "text": "35.1 mJ · 28.4/s"}
    }
    assert rate_payload("step", None) == {}


def test_an_empty_history_says_so():
    assert repr(RunHistory()) == "nothing was measured yet"


def test_a_beat_adds_domains_up_and_keeps_the_unknown_unknown():
    points = [LivePoint(0.25, {"cpu": 1.0, "gpu": None}), LivePoint(0.5, {"cpu": 2.0, "gpu": 3.0})]
    beat = update_payload(points, {"cpu": 1.0, "gpu": 2.0}, {"cpu": 2.0, "gpu": None}, None, 0.4)
    assert beat["as_of_s"] == 0.4
    assert beat["energy_j"] == pytest.approx(fsum([1.0, 2.0]))
    assert beat["power_w"] == {"cpu": 2.0, "gpu": None}
    assert beat["points"] == {"t_s": [0.25, 0.5], "power_w": {"cpu": [1.0, 2.0], "gpu": [None, 3.0]}}
    assert beat["carbon_g"] is None
    assert update_payload([], {}, {}, None, -0.1)["energy_j"] is None


@pytest.mark.alone  # joules within ten percent
def test_joules_of_a_pulse_are_those_of_the_counter(powercap):
    import time

    import torchwatt as tw

    with tw.profile(layers="off", live="off", powercap_root=powercap.root) as run:
        pulse = run.pulse()
        start_ns = time.monotonic_ns()
        for _ in range(8):
            time.sleep(0.1)
            pulse.update()
        end_ns = time.monotonic_ns()
    for domain, name in (("cpu:0", "package-0"), ("dram:0", "dram")):
        truth_j = powercap.energy_j(name, start_ns, end_ns)
        assert pulse.energy_j[domain] == pytest.approx(truth_j, rel=0.1)
        assert pulse.points[-1].power_w[domain] == pytest.approx(truth_j / ((end_ns - start_ns) / 1e9), rel=0.1)


def test_what_a_runner_keeps_of_a_closed_widget_is_small():
    from torchwatt.notebook import live_widget

    if not (live_widget._STATIC / "widget.js").is_file():
        pytest.fail("the front end is not built: make front")
    live = live_widget.LiveWidget({"schema": "torchwatt.live"})
    assert len(live._esm) > 50_000
    live.end()
    assert len(live._esm) + len(live._css) < 100
