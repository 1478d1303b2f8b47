"""Whole programs in synthetic traces: the join's figures are the generator's truth, and those of a slow join."""

from collections import Counter

import numpy as np
import pytest

from tests.kineto import reference_join as reference
from tests.kineto.synthetic_traces import SyntheticProgram, inference, layers_of, training
from torchwatt.kineto import join_trace, read_trace

PROGRAMS = {
    "training": training,
    "training on several cards": lambda: training(reduce=True),
    "checkpointed training": lambda: training(recompute=True),
    "inference": inference,
}


@pytest.fixture(params=PROGRAMS)
def program(request):
    return PROGRAMS[request.param]()


def by_leaf(found):
    """Return {(module's own name, phase): ns}."""
    times = Counter()
    for activity in found.activities:
        length = np.bincount(activity.slot, activity.end_ns - activity.start_ns, len(activity.slots))
        for slot, ns in zip(activity.slots, length, strict=True):
            times[slot.fqn.rpartition(".")[2], slot.phase] += int(ns)
    return times


def test_every_layer_has_its_own_forward_and_backward_time(program, tmp_path):
    found = join_trace(read_trace(program.save(tmp_path / "t.json.gz")))
    assert by_leaf(found) == program.owner_ns
    assert found.total_kernel_ns == program.kernel_ns == reference.kernel_ns(program.events)
    assert sum(len(activity) for activity in found.activities) == found.records
    assert found.named_share == pytest.approx(1.0)
    assert found.lost == 0


def test_every_layer_agrees_with_a_slow_join_by_other_means(program, tmp_path):
    path = program.save(tmp_path / "t.json.gz")
    times, slow = by_leaf(join_trace(read_trace(path))), reference.layer_times(reference.load(path))
    assert len(slow) >= 9
    assert {key: times[key] for key in slow} == slow


def test_recomputed_layers_are_backward_and_said_to_be_recomputed(tmp_path):
    found = join_trace(read_trace(training(recompute=True).save(tmp_path / "t.json.gz")))
    plain = join_trace(read_trace(training().save(tmp_path / "plain.json.gz")))
    assert found.kernel_ns["recompute"] > 0
    assert plain.kernel_ns["recompute"] == 0


def test_busy_time_is_less_than_the_sum_where_streams_overlap(tmp_path):
    program = training(reduce=True)
    found = join_trace(read_trace(program.save(tmp_path / "t.json.gz")))
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in program.events if e["cat"] == "kernel")
    union, until = 0, 0
    for start, end in spans:
        union += max(end - max(start, until), 0)
        until = max(until, end)
    assert found.busy_ns["gpu:0"] == union * 1000 < found.total_kernel_ns
    assert by_leaf(found)["(communication)", "communication"] > 0


def replayed(tmp_path, owner=None):
    """Return traces of a capture and of three replays of it, and the replays' truth."""
    capture, replay = SyntheticProgram(1), SyntheticProgram(2)
    capture.forward(layers_of(3))
    capture.capture(layers_of(12))
    replay.replay(capture.captured, 3, owner=owner)
    paths = [one.save(tmp_path / f"{i}.json.gz") for i, one in enumerate((capture, replay))]
    return (*map(read_trace, paths), replay)


def test_replayed_kernels_belong_to_the_modules_that_launched_them_at_capture(tmp_path):
    capture, replay, program = replayed(tmp_path)
    found = join_trace(replay, captures=[capture])
    assert by_leaf(found) == program.owner_ns
    assert len(program.owner_ns) == 12
    assert any("3 of 3 graph replays are labelled" in text for text in found.notes)


def test_a_replay_without_its_capture_is_booked_to_what_encloses_it_and_said(tmp_path):
    _, replay, program = replayed(tmp_path, owner="decode")
    found = join_trace(replay)
    assert by_leaf(found) == program.owner_ns
    assert found.share("graph") == pytest.approx(1.0)
    assert any("have no capture that fits" in text for text in found.notes)


def test_a_trace_without_kernels_has_no_activity_and_says_no_wrong_figure(tmp_path):
    program = inference()
    program.events = [e for e in program.events if e["cat"] != "kernel"]
    found = join_trace(read_trace(program.save(tmp_path / "t.json.gz")))
    assert found.activities == ()
    assert (found.total_kernel_ns, found.named_share) == (0, 0)
