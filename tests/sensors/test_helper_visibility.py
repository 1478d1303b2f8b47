"""The program does not meet our helpers: it may wait for any child, join all threads, or end its children."""

import os
import threading

import psutil
import pytest

from torchwatt.disk.helper_thread import HelperThread, helper_threads
from torchwatt.sensors import Sampler
from torchwatt.sensors.load_model import process_source
from torchwatt.sensors.protocol import Discovery
from torchwatt.sensors.sampler_process import CAN_DETACH, SamplerProcess


@pytest.fixture
def feed():
    sampler = Sampler(Discovery((process_source(),)))
    sampler.start()
    yield sampler
    sampler.stop()


@pytest.mark.skipif(not CAN_DETACH, reason="no pidfd here")
def test_the_sampler_is_no_child_of_the_program(feed):
    assert feed.sampler_pid is not None
    assert feed.sampler_pid not in [child.pid for child in psutil.Process().children(recursive=True)]
    if not psutil.Process().children():
        with pytest.raises(ChildProcessError):
            os.wait()


def test_a_program_finds_only_its_own_threads(feed):
    assert "torchwatt-watch" in helper_threads()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("torchwatt")]


def test_a_helper_thread_ends_and_may_be_joined():
    go, seen = threading.Event(), []
    thread = HelperThread(lambda: seen.append((go.wait(10), thread.is_current())), "torchwatt-test")
    thread.start()
    thread.join(0.01)
    assert thread.is_alive()
    assert "torchwatt-test" in helper_threads()
    assert not thread.is_current()
    go.set()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == [(True, True)]
    assert "torchwatt-test" not in helper_threads()


def test_a_sampler_that_python_cannot_start_has_ended(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with (tmp_path / "memory").open("w+b") as file:
        child = SamplerProcess({}, file.fileno())
        assert not child.alive()
        assert child.wait(10.0)
        child.stop()
