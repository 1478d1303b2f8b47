"""Stages in device windows: of the launching thread, and steps that were not recorded are filled from their own."""

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchwatt as tw
from tests.support.examples import examples
from tests.tracing.nets import Net, traced
from tests.tracing.test_device_windows import rows_of, watched
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity
from torchwatt.kineto import join_trace, read_trace
from torchwatt.kineto.host_ownership import NO_RANGES, RecordedRanges, RecordedStages
from torchwatt.kineto.join_worker import read_activities, read_ranges, write_activities, write_ranges
from torchwatt.tracing.device_windows import extrapolate_windows
from torchwatt.tracing.step_events import DeviceSteps


def stages_of(activity, *, filled=None):
    """Return ns of records by stage."""
    length = activity.end_ns - activity.start_ns
    chosen = np.ones(len(activity), dtype=np.bool_) if filled is None else activity.filled == filled
    sums = np.bincount(activity.slot[chosen], length[chosen], len(activity.slots))
    times = Counter()
    for slot, ns in zip(activity.slots, sums, strict=True):
        times[slot.stage] += ns
    return {stage: ns for stage, ns in times.items() if ns}


def test_kernels_of_a_session_reach_the_stages_that_the_program_names():
    net = Net()
    with traced(net) as run, torch.no_grad():
        watched(run)
        for _ in range(6):
            with tw.stage("prefill"):
                net(torch.randn(512, 16))
            with tw.stage("decode"):
                for _ in range(6):
                    net(torch.randn(8, 16))
    (activity,) = run.trace.activities
    assert {"prefill", "decode"} <= set(stages_of(activity)) <= {"prefill", "decode", ""}
    named = {(slot.fqn, slot.stage) for slot in activity.slots if slot.phase == "forward"}
    assert {("blocks.0.fc1", "decode"), ("head", "decode"), ("blocks.0.fc1", "prefill")} <= named
    stages = np.array([slot.stage for slot in activity.slots])[activity.slot]
    assert run.trace.step_stages.count("prefill") == 6
    for stage, (start, end) in zip(run.trace.step_stages, activity.steps, strict=True):
        inside = (activity.start_ns >= start) & (activity.end_ns <= end) & activity.filled
        assert set(stages[inside].tolist()) <= {stage}


def test_the_backward_pass_is_of_the_stage_around_it_whatever_other_threads_are_in():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    with traced(net) as run:
        watch = watched(run)
        done = threading.Event()

        def serve():
            with tw.stage("serve"), torch.no_grad():
                while not done.wait(0.0002):
                    torch.randn(8, 16).relu()

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(25):
            with tw.stage("train"):
                net(torch.randn(8, 16)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        done.set()
        thread.join()
        assert watch._jobs._count > 0
    (activity,) = run.trace.activities
    backward = {slot.stage for slot in activity.slots if slot.phase == "backward"}
    assert backward == {"train"}
    assert ("blocks.0.fc1", "backward", "train") in {(s.fqn, s.phase, s.stage) for s in activity.slots}


def test_stages_pass_to_the_worker_and_back(tmp_path):
    columns = {name: getattr(NO_RANGES, name) for name in ("thread", "start_ns", "end_ns", "seq0", "seq1", "slot")}
    stages = RecordedStages(*(np.arange(2) + i for i in range(4)), names=("prefill", "décode"))
    write_ranges(tmp_path / "a", RecordedRanges(**columns, stages=stages))
    back = read_ranges(tmp_path / "a").stages
    assert back.names == stages.names
    for name in ("thread", "start_ns", "end_ns", "stage"):
        assert np.array_equal(getattr(back, name), getattr(stages, name))
    write_ranges(tmp_path / "b", NO_RANGES)
    assert read_ranges(tmp_path / "b").stages is None
    write_activities(tmp_path / "c", [window((0, 100), ("décode", 0, 10))])
    assert read_activities(tmp_path / "c")[0].slots == (Slot("a", "forward", "décode"),)


def test_stages_are_ranges_in_the_trace_of_the_users_own_profiler(tmp_path):
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler,
        tw.stage("prefill"),
        tw.stage("verify"),
    ):
        torch.ones(3).relu()
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    assert join_trace(read_trace(tmp_path / "t.json")).annotations == {"prefill", "verify"}
    with tw.stage("decode"):
        assert not torch.autograd._profiler_enabled()


def window(covered, *records):
    """A window of records: stage, start and end."""
    slots = tuple(dict.fromkeys(Slot("a", "forward", stage) for stage, *_ in records))
    slot = np.array([slots.index(Slot("a", "forward", stage)) for stage, *_ in records], dtype=np.int64)
    table = np.array([each[1:] for each in records], dtype=np.int64).reshape(-1, 2)
    zeros = np.zeros(len(records), dtype=np.int64)
    return Activity("gpu:0", slots, slot, table[:, 0], table[:, 1], zeros, zeros > 0, ("k",), zeros, (covered,))


def steps_of(*steps):
    return [DeviceSteps(start, end, count, bound=False, stage=stage) for stage, start, end, count in steps]


def test_a_step_is_filled_from_the_nearest_window_of_its_stage():
    windows = [window((0, 100), ("prefill", 0, 90)), window((500, 600), ("decode", 500, 510))]
    steps = steps_of(("prefill", 0, 100, 1), ("decode", 500, 600, 1), ("prefill", 600, 700, 1), ("decode", 100, 200, 1))
    steps.sort(key=lambda step: step.start_ns)
    found = extrapolate_windows(windows, steps, str)
    assert stages_of(found, filled=True) == {"prefill": 90, "decode": 10}
    assert rows_of(found) == [(0, 90, False), (100, 110, True), (500, 510, False), (600, 690, True)]


def test_a_window_of_several_stages_fills_each_with_its_own_work_and_that_of_other_threads():
    mixed = window((0, 300), ("prefill", 0, 90), ("decode", 100, 110), ("decode", 200, 210), ("serve", 0, 30))
    steps = steps_of(
        ("prefill", 0, 100, 1), ("decode", 100, 300, 2), ("prefill", 1000, 1200, 1), ("decode", 1200, 1400, 2)
    )
    found = extrapolate_windows([mixed], steps, str)
    own = stages_of(found, filled=True)
    assert (own["prefill"], own["decode"]) == (90, 20)
    assert own["serve"] > 0


def test_a_stage_without_a_window_is_filled_from_another_under_its_own_name_and_said():
    steps = steps_of(("decode", 0, 100, 1), ("verify", 100, 200, 1), ("verify", 200, 300, 1))
    found = extrapolate_windows([window((0, 100), ("decode", 0, 10), ("", 20, 25))], steps, str, 2)
    assert stages_of(found, filled=True) == {"verify": 20, "": 10}
    assert any("no window has a step of the stage 'verify'" in note for note in found.notes)
    assert not any("of the stage 'decode'" in note for note in found.notes)


@examples(30)
@given(
    st.lists(st.tuples(st.sampled_from(["", "prefill", "decode"]), st.integers(1, 40)), min_size=1, max_size=4),
    st.lists(st.sampled_from(["", "prefill", "decode", "verify"]), min_size=1, max_size=8),
    st.integers(1, 3),
)
def test_filled_steps_have_records_of_their_own_stage_only(recorded, unrecorded, each):
    windows, steps = [], []
    for i, (stage, work) in enumerate(recorded):
        windows.append(window((i * 50, i * 50 + 50), (stage, i * 50, i * 50 + work)))
        steps += steps_of((stage, i * 50, i * 50 + 50, 1))
    for i, stage in enumerate(unrecorded):
        steps += steps_of((stage, 1000 + i * 50, 1050 + i * 50, 1))
    found = extrapolate_windows(windows, steps, str, each)
    stages = [found.slots[i].stage for i in found.slot.tolist()]
    for stage, start, end, filled in zip(stages, found.start_ns, found.end_ns, found.filled, strict=True):
        if filled and start < end:
            assert stage == unrecorded[(int(start) - 1000) // 50]
    known = {stage: min(w for s, w in recorded if s == stage) for stage, _ in recorded}
    for stage, least in known.items():
        number = unrecorded.count(stage)
        assert stages_of(found, filled=True).get(stage, 0) == pytest.approx(number * least, abs=number * 40)
        assert bool(number) == bool(stages_of(found, filled=True).get(stage, 0))
