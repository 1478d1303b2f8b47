from dataclasses import replace
from math import fsum, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reports import bare_report, named_report, sample_report
from torchwatt.core.ledger import Entry
from torchwatt.core.terms import PHASES, RESERVED, ROOT, Domain
from torchwatt.views import LAYER_COLUMNS, layer_rows, to_text
from torchwatt.views.energy_rates import step_rates
from torchwatt.views.layer_groups import layer_groups
from torchwatt.views.layer_sums import class_names, is_tied, sum_layers
from torchwatt.views.module_tree import build_tree, find_containers, sum_totals
from torchwatt.views.power_chart import choose_ticks, select_extremes
from torchwatt.views.report_summary import domain_texts

parts = st.sampled_from(["a", "b", "c", "0", "1"])
fqns = st.one_of(st.lists(parts, min_size=1, max_size=4).map(".".join), st.sampled_from([ROOT, *RESERVED]))


@st.composite
def entries(draw):
    slots = draw(st.lists(st.tuples(fqns, st.sampled_from(PHASES)), min_size=1, max_size=20, unique=True))
    return [
        Entry(
            Domain("gpu", 0), fqn, phase, draw(st.floats(0, 1e6)), None, None, None, None, 0.0, 1, "fit", "apportioned"
        )
        for fqn, phase in slots
    ]


def totals_of(booked, modules=()):
    inside = find_containers((e.fqn for e in booked), modules)
    return sum_totals(((e.fqn, e.phase, e.energy_self_j) for e in booked), inside)


@given(entries())
def test_a_total_is_the_sum_of_the_selfs_below(booked):
    found = totals_of(booked)
    for name, phase in [(name, phase) for name, by_phase in found.items() for phase in by_phase]:
        below = [
            e.energy_self_j
            for e in booked
            if e.phase == phase
            and e.fqn not in RESERVED
            and (e.fqn == name or e.fqn.startswith(f"{name}.") or name == ROOT)
        ]
        assert isclose(found[name][phase], fsum(below), rel_tol=1e-12, abs_tol=1e-12)


@given(st.lists(fqns, min_size=1, max_size=12, unique=True))
def test_the_top_of_the_tree_holds_every_joule_that_is_not_reserved(names):
    layers = sum_layers(named_report(*names))
    tops = build_tree(layers)
    booked_j = fsum(layer.energy_j for layer in layers if not layer.reserved)
    assert isclose(fsum(node.total_j for node in tops), booked_j, abs_tol=1e-12)
    if ROOT in names:
        assert [node.fqn for node in tops] == [ROOT]


def test_root_owns_the_modules_of_the_model_and_no_scope():
    report = named_report(ROOT, "fc", "loss")
    (ledger,) = report.ledgers
    known = totals_of(ledger.entries, {ROOT, "fc"})
    assert known[ROOT]["forward"] == 2.0
    tops = build_tree(sum_layers(report), {ROOT, "fc"})
    assert [node.fqn for node in tops] == [ROOT, "loss"]


def test_rows_have_the_columns_of_the_frame_and_add_up():
    report = sample_report()
    rows = layer_rows(report)
    assert all(tuple(row) == LAYER_COLUMNS for row in rows)
    assert isclose(fsum(row["energy_self_j"] for row in rows), report.energy_j, rel_tol=1e-9)
    assert len({(row["domain"], row["fqn"], row["phase"]) for row in rows}) == len(rows)
    for ledger in report.ledgers:
        share = fsum(row["energy_share"] for row in rows if row["domain"] == str(ledger.domain))
        assert share == pytest.approx(1.0)
    assert layer_rows(bare_report()) == []


def test_a_container_counts_its_children_and_itself_once():
    rows = {(r["domain"], r["fqn"], r["phase"]): r for r in layer_rows(sample_report())}
    attn = rows["gpu:0", "blocks.0.attn", "forward"]
    below = [rows["gpu:0", f"blocks.0.attn.{name}", "forward"] for name in ("qkv", "proj")]
    whole_j = attn["energy_self_j"] + fsum(row["energy_self_j"] for row in below)
    assert attn["energy_total_j"] == pytest.approx(whole_j, rel=1e-12)
    assert attn["module_class"] == "Attention"
    assert rows["gpu:0", "(optimizer)", "optimizer"]["energy_per_call_j"] is None


def test_an_interval_is_unknown_where_one_domain_has_none():
    report = sample_report()
    gpu, *others = report.ledgers
    unknown = tuple(replace(entry, energy_self_lo_j=None, energy_self_hi_j=None) for entry in gpu.entries)
    layers = {x.fqn: x for x in sum_layers(replace(report, ledgers=(replace(gpu, entries=unknown), *others)))}
    assert layers["head"].phases["forward"].lo_j is None
    assert layers["head"].provenance == "apportioned"
    assert "backward" not in layers["frozen_probe"].phases


def test_layers_whose_order_cannot_be_told_are_tied():
    found = {group.name for group in layer_groups(sample_report(), "hottest") if group.unclear}
    assert {"blocks.1.mlp.fc1", "blocks.0.mlp.fc2"} <= found
    assert not {"head", "blocks.0.mlp.fc1"} & found
    rows = [row for row in layer_rows(sample_report()) if row["domain"] == "gpu:0"]
    assert [row["tied"] for row in rows[:3]] == [False, False, True]  # -6..+7 % of 6.8, 5.8 and 5.7 %
    assert is_tied((10.0, 1.0), (8.9, 0.5))
    assert not is_tied((10.0, 1.0), (8.9, 0.3))
    assert not is_tied((10.0, None), (10.0, 0.3))


def test_a_domain_that_is_not_counted_is_shown_and_in_no_sum():
    report = sample_report()
    gpu, *others = report.ledgers
    apart = replace(report, ledgers=(replace(gpu, counted=False), *others))
    assert apart.energy_j == pytest.approx(report.energy_j - gpu.energy_j)
    assert {row["domain"] for row in layer_rows(apart)} == {"cpu:0", "ram"}
    assert fsum(layer.energy_j for layer in sum_layers(apart)) == pytest.approx(apart.energy_j)
    assert domain_texts(apart)[-1].domain == "gpu:0"
    assert domain_texts(apart)[-1].share == "not counted"
    assert "5.46 kJ" in to_text(apart)


def test_steps_of_unlike_stages_are_never_one_number():
    report = sample_report()
    labels = [rate.label for rate in step_rates(report)]
    assert labels == ["per training step", "per validation step"]
    assert step_rates(report)[0].detail.endswith("32 of 40 steps of 550 ms")
    alike = replace(report, steps=tuple(replace(step, stage="train") for step in report.steps))
    assert [rate.label for rate in step_rates(alike)] == ["per step"]
    assert step_rates(replace(report, steps=())) == ()


def test_aliases_have_the_class_of_their_module():
    assert class_names(sample_report())["head"] == "Linear"


@pytest.mark.parametrize("name", ["." * 50, ".a", "a.", "a..b", ".".join("x" * 500)])
def test_odd_dots_end_somewhere(name):
    layers = sum_layers(named_report(name, "a"))
    assert fsum(node.total_j for node in build_tree(layers)) == 6.0


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=400), st.integers(2, 60))
def test_a_thinner_curve_keeps_its_least_and_its_most(values, most):
    import numpy as np

    keep = select_extremes(np.array(values), most)
    assert len(keep) <= most
    assert keep == sorted(set(keep))
    assert max(values[i] for i in keep) == max(values)
    assert min(values[i] for i in keep) == min(values)


@given(st.floats(1e-6, 1e9))
def test_ticks_reach_the_top_and_are_few(top):
    found = choose_ticks(top)
    assert found[0] == 0
    assert found[-1] >= top * 0.998
    assert 2 <= len(found) <= 7
