"""Device windows: the whole way on the CPU, with kernels put into the recorded files."""

import json
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.tracing.nets import Net, codes, traced, train
from torchwatt.core.errors import TraceError
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity
from torchwatt.kineto.host_ownership import RecordedRanges
from torchwatt.kineto.join_worker import read_activities, read_ranges, write_activities, write_error, write_ranges
from torchwatt.tracing import device_profiler as watch_module
from torchwatt.tracing.device_profiler import DeviceProfiler
from torchwatt.tracing.device_windows import WindowRecorder, extrapolate_windows
from torchwatt.tracing.step_events import DeviceSteps
from torchwatt.tracing.user_process import device_names

LAUNCHED = {"aten::addmm", "aten::mm", "aten::clamp_min_", "aten::mean"}


def with_kernels(path):
    """Put a launch into, and a kernel behind, every recorded operator of some names."""
    trace = json.loads(path.read_text())
    added, number = [], 0
    for event in trace["traceEvents"]:
        if event.get("cat") == "cpu_op" and event["name"] in LAUNCHED:
            number += 1
            launch = {k: event[k] for k in ("pid", "tid")} | {"ph": "X", "cat": "cuda_runtime", "dur": 0.1}
            launch |= {
                "name": "cudaLaunchKernel",
                "ts": event["ts"] + event["dur"] / 2,
                "args": {"correlation": number},
            }
            kernel = {"ph": "X", "cat": "kernel", "name": event["name"], "pid": 0, "tid": 7}
            kernel |= {"ts": event["ts"] + event["dur"], "dur": event["dur"]}
            kernel["args"] = {"device": 0, "stream": 7, "correlation": number, "grid": [1, 1, 1], "block": [32, 1, 1]}
            added += [launch, kernel]
    trace["traceEvents"] += added
    path.write_text(json.dumps(trace))


def watched(run, edit=with_kernels):
    hub = run.tracer._hub
    watch = DeviceProfiler(hub.clock_ns, hub.note, {}, forced=True, edit=edit)
    hub.watch_devices(watch)
    return watch


def names_of(activity, phase):
    return {slot.fqn for slot in activity.slots if slot.phase == phase}


def test_kernels_of_windows_reach_their_layers_and_the_other_steps_are_filled():
    net = Net()
    with traced(net) as run:
        watch = watched(run)
        train(net, 40)
        folder = watch._jobs.folder
    (activity,) = run.trace.activities
    assert activity.device == "gpu:0"
    layers = {"blocks.0.fc1", "blocks.0.act", "blocks.1.fc2", "head"}
    assert layers <= names_of(activity, "forward")
    assert {"blocks.0.fc1", "blocks.1.fc2", "head"} <= names_of(activity, "backward")
    assert not any(slot.fqn.startswith("#") for slot in activity.slots)
    assert activity.filled.any()
    assert not activity.filled.all()
    assert len(activity.steps) == 40
    # Every step is either seen or filled: nothing of the loop is silence that means ignorance.
    for start, end in activity.steps:
        assert any(a <= end and start <= b for a, b in activity.covered)
    assert not folder.exists()
    assert not torch.autograd._profiler_enabled()


def test_no_thread_prepares_a_window_while_another_exports_one():
    """Torch crashes where a profiler is prepared during the export of a trace."""
    net, other, seen = Net(), Net(), []

    def infer():
        with torch.no_grad():
            for _ in range(5):
                other(torch.randn(8, 16))

    def edit(path):
        thread = threading.Thread(target=infer)
        thread.start()
        thread.join()
        seen.append(watch.is_on)
        with_kernels(path)

    with traced(net) as run:
        watch = watched(run, edit)
        train(net, 20)
    assert seen
    assert not any(seen)
    assert run.trace.activities


def test_a_window_on_a_machine_without_kernels_leaves_no_activity():
    net = Net()
    with traced(net) as run:
        watched(run, edit=None)
        train(net, 20)
    assert run.trace.activities == ()
    assert "WINDOW_LOST" not in codes(run.trace)


def test_inference_is_recorded_between_outermost_calls():
    net = Net()
    with traced(net) as run:
        watched(run)
        with torch.no_grad():
            for _ in range(30):
                net(torch.randn(8, 16))
    (activity,) = run.trace.activities
    assert {"blocks.0.fc1", "head"} <= names_of(activity, "forward")
    assert names_of(activity, "backward") == set()


def test_a_file_that_cannot_be_read_is_a_lost_window_and_not_a_lost_run():
    net = Net()
    with traced(net) as run:
        watched(run, edit=lambda path: path.write_text("not a trace"))
        train(net, 20)
    assert run.trace.activities == ()
    assert "WINDOW_LOST" in codes(run.trace)


def test_the_user_s_profiler_is_never_stolen_by_a_device_window():
    net = Net()
    with traced(net) as run:
        watch = watched(run)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as prof:
            train(net, 12)
        assert watch._jobs._count == 0
    assert sum("aten::addmm" in e.key for e in prof.key_averages()) >= 1
    assert "PROFILER_BUSY" in codes(run.trace)


def test_a_session_that_ends_in_a_window_leaves_the_recorder_off_and_no_file():
    net = Net()
    with traced(net) as run:
        watch = watched(run)
        folder = watch._jobs.folder
        for _ in range(50):
            train(net, 1)
            if watch.recording:
                break
        assert watch.recording
    assert not torch.autograd._profiler_enabled()
    assert not folder.exists()


def test_no_budget_means_no_device_window():
    net = Net()
    with traced(net, overhead_budget=0) as run:
        watch = watched(run)
        train(net, 20)
        assert watch._jobs._count == 0


def activity(records, covered, fqn="a"):
    table = np.array(records, dtype=np.int64).reshape(-1, 2)
    n = len(table)
    zeros = np.zeros(n, dtype=np.int64)
    slots = (Slot(fqn, "forward"),)
    return Activity("gpu:0", slots, zeros, table[:, 0], table[:, 1], zeros, zeros > 0, ("k",), zeros, (covered,))


def host_steps(*bounds):
    return [DeviceSteps(start, end, 1, bound=False) for start, end in bounds]


def rows_of(found):
    return sorted(zip(found.start_ns.tolist(), found.end_ns.tolist(), found.filled.tolist(), strict=True))


def test_an_unseen_step_does_the_nearest_window_s_work_with_other_pauses():
    window = activity([(110, 120), (130, 150)], (100, 200))
    found = extrapolate_windows([window], host_steps((0, 50), (100, 190), (300, 500)), str.upper)
    # 30 of work in 50 and in 200: the pauses of 70 become 20 and 170.
    assert rows_of(found) == [
        (3, 13, True),
        (16, 36, True),
        (110, 120, False),
        (130, 150, False),
        (324, 334, True),
        (359, 379, True),
    ]
    assert found.slots == (Slot("A", "forward"),)
    assert found.covered == ((0, 500),)  # holes of less than a millisecond are closed


def test_what_lies_between_steps_for_longer_is_not_watched():
    window = activity([(110, 120), (130, 150)], (100, 200))
    later = 10**7
    found = extrapolate_windows([window], host_steps((0, 50), (100, 190), (later, later + 100)), str)
    assert found.covered == ((0, 200), (later, later + 100))


def test_a_device_with_work_in_its_queue_makes_no_pause():
    window = activity([(110, 120), (130, 150)], (100, 200))
    found = extrapolate_windows([window], [*host_steps((100, 190)), DeviceSteps(300, 330, 1, bound=True)], str)
    assert rows_of(found)[2:] == [(300, 310, True), (310, 330, True)]


def test_steps_that_are_put_together_do_as_much_work_as_they_are():
    window = activity([(110, 120), (130, 150)], (100, 200))
    found = extrapolate_windows([window], [*host_steps((100, 190)), DeviceSteps(1000, 1400, 4, bound=False)], str)
    assert sum(end - start for start, end, filled in rows_of(found) if filled) == 120


def union(records):
    total, free = 0, 0
    for start, end in sorted(records):
        total += max(end - max(start, free), 0)
        free = max(free, end)
    return total


@examples(30)
@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted), max_size=6),
    st.lists(st.tuples(st.integers(1, 500), st.booleans()), min_size=1, max_size=12),
)
def test_filled_records_stay_inside_their_steps_and_do_the_window_s_work(records, lengths):
    window = activity([(a + 1000, b + 1000) for a, b in records], (1000, 1100))
    steps, t = [], 2000
    for length, bound in lengths:
        steps.append(DeviceSteps(t, t + length, 1, bound))
        t += length
    found = extrapolate_windows([window], steps, str)
    work = union(records)
    for step in steps:
        inside = [
            (start, end)
            for start, end, filled in rows_of(found)
            if filled and step.start_ns <= start and end <= step.end_ns and start < end
        ]
        length = step.end_ns - step.start_ns
        expected = length if step.bound and work else min(work, length)
        assert abs(union(inside) - expected) <= 2 * len(records) + 1  # rounding to a nanosecond
    assert np.all((found.start_ns >= 2000) | ~found.filled)
    assert np.all((found.end_ns <= t) | ~found.filled)


def test_what_passes_to_the_worker_and_back_is_the_same(tmp_path):
    columns = [np.arange(3) + i for i in range(5)]
    ranges = RecordedRanges(*columns, np.array([0, 1, 0]), slots=(Slot("#1", "forward"), Slot("x", "other")))
    write_ranges(tmp_path / "a", ranges)
    back = read_ranges(tmp_path / "a")
    assert back.slots == ranges.slots
    assert np.array_equal(back.seq1, ranges.seq1)
    one = activity([(1, 2), (3, 4)], (0, 9))
    write_activities(tmp_path / "b", [one])
    (again,) = read_activities(tmp_path / "b")
    assert (again.device, again.slots, again.covered, again.signatures) == ("gpu:0", one.slots, ((0, 9),), ("k",))
    assert np.array_equal(again.end_ns, one.end_ns)
    write_error(tmp_path / "c", "why")
    with pytest.raises(TraceError, match="why"):
        read_activities(tmp_path / "c")
    with pytest.raises(TraceError, match="cannot be read"):
        read_activities(tmp_path / "none")


def test_devices_are_known_by_their_uuid_whatever_their_number():
    cuda = SimpleNamespace(
        device_count=lambda: 3,
        get_device_properties=lambda i: SimpleNamespace(uuid=["bb-2", "aa-1", "cc-3"][i]),
    )
    assert device_names(cuda, {"GPU-AA-1": "gpu:0", "GPU-bb-2": "gpu:1"}) == {
        "gpu:0": "gpu:1",
        "gpu:1": "gpu:0",
        "gpu:2": "gpu:2 (no meter)",
    }


def test_waiting_for_a_device_that_works_is_no_cost():
    now = [1]

    def clock_ns():
        now[0] += 1_000
        return now[0]

    def synchronize():
        now[0] += 10**9

    recorder = WindowRecorder(clock_ns, synchronize, [torch.profiler.ProfilerActivity.CPU])
    recorder.prepare()
    recorder.start()
    recorder.stop()
    assert 0 < recorder.cost_ns < 10**6
    assert recorder.end_ns - recorder.start_ns > 10**9


def test_a_forked_worker_leaves_the_parents_window_folder_alone():
    net = Net()
    with traced(net) as run:
        watch = watched(run)
        train(net, 2)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert watch._jobs.folder.is_dir()
        train(net, 30)
    assert run.trace.activities
    assert "WINDOW_FAILED" not in codes(run.trace)


def test_while_a_graph_is_captured_devices_are_asked_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    net = Net()
    with traced(net) as run:
        hub = run.tracer._hub
        watch = DeviceProfiler(hub.clock_ns, hub.note, {})
        hub.watch_devices(watch)
        train(net, 20)
        assert watch._clocks._stamps == {}
        assert not watch.is_on
    assert not {"WINDOW_FAILED", "TRACE_FAILED"} & set(codes(run.trace))


def test_a_warm_up_that_fails_leaves_no_recorder_behind(monkeypatch):
    def fails(self):
        raise RuntimeError("stop")

    monkeypatch.setattr(watch_module, "_profiler_is_warm", False)
    stops = iter((fails, WindowRecorder.stop))
    monkeypatch.setattr(WindowRecorder, "stop", lambda self: (next(stops))(self))  # noqa: PLW0108  a new one each time
    notes = []
    watch = DeviceProfiler(time.monotonic_ns, lambda *note: notes.append(note), {}, forced=True)
    watch.warm_up()
    assert not torch.autograd._profiler_enabled()
    assert not watch.is_on
    assert [code for _, code, _ in notes] == ["WINDOW_FAILED"]
    watch.close()


def test_steps_are_put_together_only_where_nothing_lies_between_them():
    window = activity([(110, 120)], (100, 200))
    ms = 1_000_000
    steps = [*host_steps((0, 100), (100, 200), (200, 300), (300, 400)), *host_steps((10 * ms, 10 * ms + 100))]
    found = extrapolate_windows([window], steps, str, 3)
    for start, end, filled in rows_of(found):
        assert not filled or not (start < 200 and end > 100)  # never over what was recorded
        assert not filled or end <= 400 or start >= 10 * ms  # never in the hole
    assert sum(end - start for start, end, filled in rows_of(found) if filled) == 40


@pytest.mark.alone  # a share of the time
def test_the_cost_of_windows_is_booked_and_stays_in_the_budget():
    net = Net(depth=4)
    with traced(net) as run:
        watched(run)
        conductor = run.tracer._hub.stepping.conductor
        began = time.monotonic()
        train(net, 150)
        elapsed = time.monotonic() - began
        spent = conductor.budget.spent_ns["windows"]
    assert spent > 0
    first = 0.05  # s: the first window is taken whatever it costs
    assert spent / 1e9 <= 0.01 * (elapsed + 2.0) + first


def test_nobody_asks_for_cards_before_the_program_does(monkeypatch):
    """The first question settles CUDA_VISIBLE_DEVICES, and a process that forks later could use no card."""

    def asked():
        raise AssertionError("asked")

    for name in ("is_available", "device_count", "current_device"):
        monkeypatch.setattr(torch.cuda, name, asked)
    net = Net()
    with traced(net) as run:
        train(net, 30)
        assert run.tracer._hub.devices is None
    assert not [event for event in run.trace.events if event.severity != "info"]


def test_devices_are_recorded_from_the_step_on_at_which_the_program_has_set_cuda_up(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)  # ask nothing else
    net, other = Net(), Net()
    with traced(net) as run:
        train(net, 5)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        train(other, 5)
        assert run.tracer._hub.devices is not None
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
