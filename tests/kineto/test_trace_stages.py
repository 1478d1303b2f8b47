"""Stages of device records: those of the thread that launched them, when it did."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.kineto.synthetic_traces import SyntheticServer
from tests.kineto.trace_files import (
    BACK,
    BASE_NS,
    MAIN,
    joined,
    kernel,
    launch,
    module,
    node,
    note,
    op,
    owned,
    pair,
    save,
    staged,
)  # fmt: skip
from tests.support.examples import examples
from torchwatt.kineto import join_trace, read_trace, stage_name
from torchwatt.kineto.host_ownership import NO_RANGES, RecordedRanges, RecordedStages

FEW = examples(15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def stage(name, ts, dur, tid=MAIN):
    return note(f"stage: {name}", ts, dur, tid)


def test_a_kernel_is_of_the_stage_that_launched_it_and_not_of_the_one_in_which_it_runs(tmp_path):
    events = [
        module("Net_0", 0, 300), stage("prefill", 1, 50), *pair(10, 20, 200, 1),
        stage("decode", 60, 50), *pair(70, 220, 40, 2),
        *pair(150, 260, 30, 3), stage("decode", 200, 80),  # launched between stages
    ]  # fmt: skip
    assert staged(joined(tmp_path, events)) == {
        ("Net_0", "forward", "prefill"): 200_000,
        ("Net_0", "forward", "decode"): 40_000,
        ("Net_0", "forward", ""): 30_000,
    }


def test_the_innermost_of_nested_stages_counts_and_other_threads_have_their_own(tmp_path):
    events = [
        stage("request", 0, 100), stage("decode", 20, 30), stage("request", 30, 5),
        *pair(10, 11, 1, 1), *pair(25, 26, 2, 2), *pair(32, 33, 4, 3), *pair(40, 41, 8, 4), *pair(60, 61, 16, 5),
        stage("prefill", 20, 30, tid=101), *pair(25, 100, 32, 6, tid=101), *pair(60, 150, 64, 7, tid=101),
    ]  # fmt: skip
    assert staged(joined(tmp_path, events)) == {
        ("(unattributed)", "other", "request"): 21_000,
        ("(unattributed)", "other", "decode"): 10_000,
        ("(unattributed)", "other", "prefill"): 32_000,
        ("(unattributed)", "other", ""): 64_000,
    }


def test_threads_of_autograd_have_the_stage_of_the_thread_that_waits_for_them(tmp_path):
    events = [
        stage("train", 0, 20), module("A_0", 0, 10), op("aten::mul", 1, 1, seq=1), *pair(2, 3, 1, 1),
        stage("update", 30, 80),
        node("MulBackward0", 50, 10, seq=1), *pair(51, 60, 2, 2, tid=BACK),
        node("torch::autograd::AccumulateGrad", 61, 9), *pair(62, 70, 4, 3, tid=BACK),
        stage("reduce", 65, 3, tid=BACK), *pair(66, 80, 8, 4, tid=BACK),  # a hook's own
        node("CheckpointBackward", 71, 20, seq=1), module("B_0", 72, 10, tid=BACK), *pair(73, 90, 16, 5, tid=BACK),
    ]  # fmt: skip
    assert staged(joined(tmp_path, events)) == {
        ("A_0", "forward", "train"): 1_000,
        ("A_0", "backward", "update"): 6_000,
        ("A_0", "backward", "reduce"): 8_000,
        ("B_0", "backward", "update"): 16_000,
    }


def captured(name):
    return [
        launch(0, 90, name="cudaStreamBeginCapture"), stage(name, 0, 30),
        module("A_0", 1, 5), launch(2, 91, kernel="gemm"), module("B_0", 10, 5), launch(11, 92, kernel="relu"),
        launch(20, 93, name="cudaStreamEndCapture"),
    ]  # fmt: skip


REPLAYS = [
    stage("decode", 100, 50), launch(101, 94, name="cudaGraphLaunch"),
    launch(160, 95, name="cudaGraphLaunch"),
    kernel(170, 4, 94, "gemm"), kernel(180, 2, 94, "relu"), kernel(190, 8, 95, "gemm"), kernel(200, 16, 95, "relu"),
]  # fmt: skip
REPLAYED = {
    ("A_0", "forward", "decode"): 4_000, ("B_0", "forward", "decode"): 2_000,
    ("A_0", "forward", ""): 8_000, ("B_0", "forward", ""): 16_000,
}  # fmt: skip


def test_a_replay_is_of_the_stage_of_its_own_launch_and_not_of_the_capture(tmp_path):
    assert staged(joined(tmp_path, [*captured("warmup"), *REPLAYS])) == REPLAYED
    capture = read_trace(save(tmp_path, captured("warmup"), "capture.json"))
    assert staged(joined(tmp_path, REPLAYS, captures=[capture])) == REPLAYED


def test_collectives_copies_and_orphans_keep_their_rows_in_each_stage(tmp_path):
    events = [
        stage("prefill", 0, 50), kernel(1, 1, 77),
        *pair(2, 10, 2, 1, name="ncclDevKernel_AllReduce"),
        *pair(3, 20, 4, 2, name="Memcpy HtoD (Pinned -> Device)", cat="gpu_memcpy"),
    ]  # fmt: skip
    found = joined(tmp_path, events)
    assert staged(found) == {
        ("(orphan)", "other", ""): 1_000,  # nobody knows who launched it
        ("(communication)", "communication", "prefill"): 2_000,
        ("(transfer)", "transfer", "prefill"): 4_000,
    }
    assert "stages are those of the launching threads: prefill (2 records); 1 records have none" in found.notes
    assert not [text for text in joined(tmp_path, [*pair(1, 2, 3, 1)]).notes if "stage" in text]


def test_stages_that_a_session_recorded_replace_those_of_the_trace(tmp_path):
    at = lambda *us: np.array([BASE_NS + t * 1000 for t in us])  # noqa: E731
    stages = RecordedStages(
        np.array([MAIN, MAIN, 999]), at(0, 20, 0), at(100, 40, 100), np.array([0, 1, 0]), ("decode", "verify")
    )
    columns = (getattr(NO_RANGES, name) for name in ("thread", "start_ns", "end_ns", "seq0", "seq1", "slot"))
    live = RecordedRanges(*columns, stages=stages)
    events = [stage("other", 0, 30), *pair(10, 11, 1, 1), *pair(25, 26, 2, 2), *pair(50, 51, 4, 3)]
    assert staged(joined(tmp_path, events, live=live)) == {
        ("(unattributed)", "other", "decode"): 5_000,
        ("(unattributed)", "other", "verify"): 2_000,
    }
    assert staged(joined(tmp_path, events)) == {
        ("(unattributed)", "other", "other"): 3_000,
        ("(unattributed)", "other", ""): 4_000,
    }


@pytest.mark.parametrize(
    ("name", "patterns", "found"),
    [
        ("prefill", (), None), ("stage: prefill", (), "prefill"), ("## prefill ##", ("prefill",), "prefill"),
        ("prefill 3", ("prefill",), None), ("prefill 3", ("prefill*",), "prefill 3"),
        ("prefill 3", ("first=prefill*", "prefill*"), "first"), ("a=b", ("a=b",), "a=b"), ("b", ("a=b",), "a"),
        ("decode[0]", ("decode[0]",), "decode[0]"), ("stage: decode", ("tokens=decode",), "tokens"),
    ],
)  # fmt: skip
def test_annotations_are_stages_where_torchwatt_named_them_or_somebody_asks(name, patterns, found):
    assert stage_name(name, patterns) == found


@st.composite
def programs(draw):
    """Threads whose calls and stages are nested at random, and whose kernels run much later, overlapping."""
    events, correlation = [], 0
    for tid in range(MAIN, MAIN + draw(st.integers(1, 3))):
        t = draw(st.integers(0, 5))
        for _ in range(draw(st.integers(1, 5))):
            length = draw(st.integers(4, 40))
            kind = draw(st.sampled_from(["module", "stage", "stage in stage", "stage in module", "plain"]))
            inner = t + 1, draw(st.integers(1, length - 2))
            name = draw(st.sampled_from(["prefill", "decode"]))
            if "module" in kind:
                events.append(module(draw(st.sampled_from(["A_0", "B_0"])), t, length, tid))
            if kind.startswith("stage"):
                events.append(stage(name, *((t, length) if kind != "stage in module" else inner), tid))
            if kind == "stage in stage":
                events.append(stage("verify", *inner, tid))
            for _ in range(draw(st.integers(1, 3))):
                correlation += 1
                at = t + draw(st.integers(0, length - 1))
                run = at + draw(st.integers(0, 100)), draw(st.integers(1, 50))
                events += pair(at, *run, correlation, tid=tid, stream=draw(st.integers(1, 3)))
            t += length + draw(st.integers(0, 3))
    if draw(st.booleans()):
        events.append(kernel(draw(st.integers(0, 50)), 3, 9_999))
    return events


def stage_by_hand(events):
    """Return ns by stage: of each kernel the shortest annotation of its launch's thread that contains the launch."""
    times = {}
    launches = {e["args"]["correlation"]: e for e in events if e["cat"] == "cuda_runtime"}
    for each in (e for e in events if e["cat"] == "kernel"):
        by = launches.get(each["args"]["correlation"])
        around = [
            (e["dur"], e["name"].removeprefix("stage: "))
            for e in events
            if by and e["name"].startswith("stage: ") and e["tid"] == by["tid"]
            and e["ts"] <= by["ts"] < e["ts"] + e["dur"]
        ]  # fmt: skip
        name = min(around)[1] if around else ""
        times[name] = times.get(name, 0) + each["dur"] * 1000
    return times


def by_stage(found):
    times = {}
    for (_, _, name), ns in staged(found).items():
        times[name] = times.get(name, 0) + ns
    return times


@FEW
@given(programs(), st.randoms(use_true_random=False), st.integers(-(10**9), 10**12))
def test_stages_are_those_found_by_hand_in_any_order_and_on_any_clock(tmp_path, events, rng: random.Random, shift_us):
    found = joined(tmp_path, events)
    assert by_stage(found) == stage_by_hand(events)
    shuffled = [{**e, "ts": e["ts"] + shift_us} for e in events]
    rng.shuffle(shuffled)
    assert staged(joined(tmp_path, shuffled)) == staged(found)


@FEW
@given(programs())
def test_stages_divide_what_modules_have_without_them(tmp_path, events):
    found = joined(tmp_path, events)
    plain = joined(tmp_path, [e for e in events if not e["name"].startswith("stage: ")])
    assert owned(found) == owned(plain)
    assert (found.kernel_ns, found.busy_ns) == (plain.kernel_ns, plain.busy_ns)
    assert {name for *_, name in staged(plain)} == {""}


def test_a_servers_kernels_have_the_stages_that_it_gave_them(tmp_path):
    server = SyntheticServer(5, 1.0, ahead=1)
    kernels = server.kernels()
    found = join_trace(read_trace(server.save(tmp_path / "t.json.gz")))
    length_s = kernels.end_s - kernels.start_s
    truth = {name: length_s[kernels.stage == name].sum() * 1e9 for name in set(kernels.stage.tolist())}
    assert by_stage(found) == pytest.approx(truth)
    assert len(truth) == 2
