"""What a block has queued on devices is its own work: both of its ends wait for them, and set up none."""

import subprocess
import sys
import threading

import torch

import torchwatt as tw
from torchwatt.tracing.user_process import wait_for_devices


def used(monkeypatch, *, contexts, fails=False, done=None, captures=False):
    """Let torch say which devices have a context; return the list of those that were waited for, each until `done`."""
    waited = []

    def synchronize(index=None):
        waited.append(index)
        if done is not None:
            done.wait()
        if fails:
            raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(contexts))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: index in contexts, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return waited


def test_only_devices_in_use_are_waited_for(monkeypatch):
    waited = used(monkeypatch, contexts={0, 2})
    assert wait_for_devices()
    assert waited == [0, 2]


def test_a_program_without_devices_waits_for_none_and_sets_up_none(monkeypatch):
    waited = used(monkeypatch, contexts=set())
    wait_for_devices()
    assert waited == []


def test_a_session_waits_at_both_ends_and_its_windows_as_well(monkeypatch):
    waited = used(monkeypatch, contexts={1})
    with tw.profile(layers="off", baseline_s=0):
        at_start = len(waited)
        with tw.profile(layers="off"):
            inside = len(waited)
        outside = len(waited)
    assert (at_start, inside, outside, len(waited)) == (1, 2, 3, 4)


def test_a_device_that_has_failed_is_the_programs_to_hear_of(monkeypatch):
    waited = used(monkeypatch, contexts={0}, fails=True)
    with tw.profile(layers="off", baseline_s=0) as run:
        pass
    assert waited
    assert run.status == "complete"


def test_waiting_loads_no_torch():
    code = (
        "import sys; from torchwatt.tracing import wait_for_devices; wait_for_devices(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_one_device_that_failed_does_not_keep_the_others_from_being_waited_for(monkeypatch):
    waited = used(monkeypatch, contexts={0, 1, 3}, fails=True)
    assert wait_for_devices()
    assert waited == [0, 1, 3]


def test_a_device_that_never_ends_is_not_waited_for_without_end(monkeypatch):
    done = threading.Event()
    used(monkeypatch, contexts={0}, done=done)
    assert not wait_for_devices(0.05)  # else it is here for ever
    done.set()  # its thread ends


def test_nothing_is_waited_for_while_a_graph_is_captured(monkeypatch):
    waited = used(monkeypatch, contexts={0}, captures=True)
    assert wait_for_devices()
    assert waited == []
