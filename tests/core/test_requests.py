"""Laws of the joules of requests, and figures against cases computed by hand."""

from math import fsum, isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.requests import RequestBatch, figures_by_part, generation_figures, token_positions, token_rows
from torchwatt.core.terms import Domain

SECOND = 1_000_000_000


def curve(watts, seconds=100, name="cpu"):
    t_ns = np.arange(seconds + 1) * SECOND
    return EnergyCurve(Domain.parse(name), t_ns, t_ns / SECOND * watts, "counter", "measured")


@st.composite
def batches(draw):
    found = []
    for _ in range(draw(st.integers(1, 6))):
        edges = sorted(draw(st.lists(st.integers(0, 100 * SECOND), min_size=4, max_size=8, unique=True)))
        pairs = list(zip(edges[::2], edges[1::2], strict=False))
        names = draw(
            st.lists(st.sampled_from(["prefill", "decode", "draft"]), min_size=len(pairs), max_size=len(pairs))
        )
        n = draw(st.integers(1, 4))
        stretches = tuple((name, lo, hi) for name, (lo, hi) in zip(names, pairs, strict=True))
        found.append(RequestBatch((5,) * n, (7,) * n, edges[0], edges[-1], stretches))
    return found


def union_s(found):
    """Return how long at least one batch was in a stage, by painting milliseconds apart from torchwatt."""
    bounds = sorted((lo, hi) for batch in found for _, lo, hi in batch.stretches)
    total, until = 0, 0
    for lo, hi in bounds:
        total += max(hi - max(lo, until), 0)
        until = max(until, hi)
    return total / SECOND


@given(batches(), st.floats(0.1, 500.0))
def test_rows_have_the_joules_of_the_time_in_which_a_request_ran_once(found, watts):
    rows = token_rows(found, [curve(watts)])
    assert isclose(fsum(row.energy_j for row in rows), watts * union_s(found), rel_tol=1e-9, abs_tol=1e-6)
    assert {row.stage for row in rows if row.request == 0} >= {"prefill", "decode"}
    assert len({row.request for row in rows}) == sum(len(batch.input_tokens) for batch in found)


@given(batches(), st.integers(0, 10**15))
def test_a_shift_of_the_clock_changes_no_joule(found, shift):
    later = [
        RequestBatch(
            b.input_tokens, b.output_tokens, b.start_ns + shift, b.end_ns + shift,
            tuple((name, lo + shift, hi + shift) for name, lo, hi in b.stretches),
        )
        for b in found
    ]  # fmt: skip
    base = curve(3.0)
    moved = EnergyCurve(base.domain, base.t_ns + shift, base.energy_j, "counter", "measured")
    before, after = token_rows(found, [base]), token_rows(later, [moved])
    assert [row.energy_j for row in before] == pytest.approx([row.energy_j for row in after], rel=1e-9, abs=1e-6)
    assert [row.time_s for row in before] == [row.time_s for row in after]


@given(batches())
def test_the_joules_of_domains_add_up(found):
    one, two = curve(2.0), curve(5.0, name="ram")
    both = token_rows(found, [one, two])
    apart = [token_rows(found, [each]) for each in (one, two)]
    assert [row.energy_j for row in both] == pytest.approx(
        [a.energy_j + b.energy_j for a, b in zip(*apart, strict=True)], rel=1e-9, abs=1e-6
    )


def test_two_batches_at_once_by_hand():
    found = [
        RequestBatch((10,), (3,), 0, 4 * SECOND, (("prefill", 0, SECOND), ("decode", SECOND, 4 * SECOND))),
        RequestBatch(
            (20, 30), (2, 5), SECOND, 6 * SECOND,
            (("prefill", SECOND, 3 * SECOND), ("decode", 3 * SECOND, 6 * SECOND)),
        ),
    ]  # fmt: skip
    rows = {(row.request, row.stage): row for row in token_rows(found, [curve(10.0)])}
    assert rows[0, "prefill"].energy_j == pytest.approx(10.0)
    assert rows[0, "decode"].energy_j == pytest.approx(15.0)  # half of 3 s
    assert rows[1, "prefill"].energy_j == rows[2, "prefill"].energy_j == pytest.approx(5.0)
    assert rows[1, "decode"].energy_j == pytest.approx((5.0 + 20.0) / 2)
    assert rows[2, "decode"].time_s == 3.0
    figures = {figure.name: figure.value for figure in generation_figures(tuple(rows.values()))}
    assert figures["requests"] == 3
    assert (figures["input_tokens"], figures["output_tokens"]) == (60, 10)
    assert figures["energy"] == pytest.approx(60.0)
    assert figures["energy_per_output_token"] == pytest.approx(6000.0)
    assert figures["energy_per_total_token"] == pytest.approx(60_000 / 70)
    assert figures["prefill_energy_per_input_token"] == pytest.approx(20_000 / 60)
    assert figures["decode_energy_per_output_token"] == pytest.approx(40_000 / 7)  # 2 + 1 + 4 tokens after the first
    assert figures["time_to_first_token"] == pytest.approx((1 + 2 + 2) / 3 * 1e3)
    assert figures["inter_token_latency"] == pytest.approx((3 / 2 + 3 / 1 + 3 / 4) / 3 * 1e3)
    assert figures["output_token_throughput"] == pytest.approx(10 / 6)
    assert figures["energy_delay_product"] == pytest.approx(20.0 * (4 + 5 + 5) / 3)


def test_what_is_unknown_is_none_and_never_zero():
    found = [RequestBatch((None,), (4,), 0, SECOND, (("prefill", 0, SECOND),)), RequestBatch((3,), (None,), 0, SECOND)]
    rows = token_rows(found, [])
    assert [row.energy_j for row in rows] == [None] * 4
    assert rows[1].time_s == 0.0  # a batch with stages was in no other one
    assert rows[2].time_s is None
    figures = {figure.name: figure.value for figure in generation_figures(rows)}
    assert figures["input_tokens"] is figures["energy_per_output_token"] is figures["energy"] is None
    assert figures_by_part(())["all"][3].value is None


def test_a_hole_of_the_meter_is_no_joule_of_the_request():
    t_ns = np.array([0, 1, 2, 5, 6, 7]) * SECOND
    holed = EnergyCurve(
        Domain.parse("cpu"), t_ns, np.array([0.0, 1, 2, 2, 3, 4]), "counter", "measured",
        silent=((2 * SECOND, 5 * SECOND),),
    )  # fmt: skip
    found = [RequestBatch((1,), (1,), 0, 6 * SECOND, (("prefill", 0, SECOND), ("decode", SECOND, 6 * SECOND)))]
    prefill, decode = token_rows(found, [holed])
    assert prefill.energy_j == pytest.approx(1.0)
    assert decode.energy_j is None


def test_positions_have_the_joules_between_tokens():
    marks = tuple(SECOND * (2 + k) for k in range(40))
    stages = (("prefill", 0, marks[0]), ("decode", marks[0], marks[-1]))
    found = [RequestBatch((9, 9), (40, 20), 0, marks[-1], stages, token_ns=marks)]
    positions = token_positions(found, [curve(4.0)])
    assert [(p.first, p.last, p.tokens) for p in positions] == [
        (0, 0, 2), (1, 15, 30), (16, 31, 16 + 4), (32, 63, 8),
    ]  # fmt: skip
    assert [p.time_s for p in positions] == [2.0, 15.0, 16.0, 8.0]
    assert [p.label for p in positions] == ["0 (prefill)", "1 to 15", "16 to 31", "32 to 63"]
    assert [p.energy_j for p in positions] == pytest.approx([8.0, 60.0, 64.0, 32.0])
    assert positions[1].each_j == pytest.approx(2.0)


def test_the_first_batch_is_the_warm_up():
    rows = token_rows([RequestBatch((1,), (2,), 0, SECOND), RequestBatch((3, 5), (7, 9), 0, SECOND)], [curve(1.0)])
    parts = figures_by_part(rows)
    assert {name: figures[0].value for name, figures in parts.items()} == {"all": 3, "warm_up": 1, "steady": 2}
    assert list(figures_by_part(rows[:2])) == ["all"]
