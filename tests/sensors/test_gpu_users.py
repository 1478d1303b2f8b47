"""A card counts unless it is proven that neither this process nor a child of it used it."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.card_machines import CardMachine, program
from torchwatt.attribution.counted_domains import classify_device_use
from torchwatt.attribution.device_fit import CudaUse
from torchwatt.core.meter import Channel, Meter, Recording, Series
from torchwatt.core.terms import CUDA_LIBRARY, USERS, DeviceUsers, Domain
from torchwatt.core.trace import EMPTY_TRACE
from torchwatt.sensors.readers.gpu_users import classify_users

NOT_HERE = 4_194_303  # no such process: pid_max is the first number that is never given
HEAD = "carbon "  # the first line after the head's notes


def head_of(found):
    return " ".join(found["text"].partition(HEAD)[0].split())


def counts(found):
    return "gpu:0" in found["counted"]


def balanced(found):
    for domain, energy_j in found["energy_j"].items():
        assert found["booked_j"][domain] == pytest.approx(energy_j, rel=1e-9)
    assert found["total_j"] == pytest.approx(sum(found["energy_j"][d] for d in found["counted"]), rel=1e-12)
    assert found["ok"], found["findings"]


@pytest.mark.parametrize("users", [(), (os.getpid(),)], ids=["nobody listed", "another process"])
def test_a_card_of_others_keeps_its_joules_outside_of_the_total(run_on, users):
    found = run_on(CardMachine().h100(300.0, users=users), program(2.5))
    assert not counts(found)
    assert found["rows"]["gpu:0"] == ["(other processes)"]
    assert found["energy_j"]["gpu:0"] == pytest.approx(300.0 * found["duration_s"], rel=0.1)
    assert found["total_j"] < 0.5 * found["energy_j"]["gpu:0"]
    assert found["step_j"] <= found["total_j"] * 1.001
    assert "gpu:0 was not used by this run" in head_of(found)
    assert any("gpu:0 was not used by this run" in note for note in found["notes"])
    assert "gpu:0 was not used by this run" in found["html"]
    balanced(found)


def test_a_card_whose_processes_cannot_be_seen_counts_and_the_head_says_so(run_on):
    found = run_on(CardMachine().h100(300.0, users=(NOT_HERE,)), program(2.5))
    assert counts(found)
    assert found["rows"]["gpu:0"] == ["(unattributed)"]
    sentence = "gpu:0 is in the total, though possibly only other processes used it"
    assert sentence in head_of(found)
    assert sentence in found["html"]
    assert any(sentence in note for note in found["notes"])
    balanced(found)


def test_of_two_cards_the_one_that_this_process_is_on_counts(run_on):
    found = run_on(CardMachine().h100(300.0).h100(200.0, users=(os.getpid(),)), program(2.5))
    assert found["counted"] == ["cpu", "gpu:0", "ram"]
    assert found["rows"]["gpu:1"] == ["(other processes)"]
    balanced(found)


CHILD = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(os.environ["NVML_SIMULATOR_SCENARIO"], "a") as scenario:
    scenario.write(f"process device=0 pid={child.pid}\\n")
import atexit
atexit.register(child.kill)
"""


def test_a_card_that_a_child_process_uses_counts(run_on):
    found = run_on(CardMachine().h100(300.0, users=()), CHILD + program(2.5))
    assert counts(found)
    assert "DEVICE_USER_UNKNOWN" not in found["codes"]
    balanced(found)


@given(st.dictionaries(st.integers(2, 30), st.integers(0, 30), max_size=20), st.sets(st.integers(1, 40)), st.booleans())
def test_listed_processes_are_ours_where_their_ancestors_reach_this_process(parents, pids, whole):
    tree = {1: 0, **{pid: parent for pid, parent in parents.items() if parent < pid}}

    def ancestors(pid):
        while pid in tree:
            yield pid
            pid = tree[pid]

    found = classify_users(pids, 1, parent=tree.get, all_visible=whole)
    ours = any(1 in ancestors(pid) for pid in pids)
    if not pids:
        assert found == (DeviceUsers.UNUSED if whole else DeviceUsers.EMPTY)
    elif ours:
        assert found == DeviceUsers.OURS
    else:
        assert found == (DeviceUsers.OTHERS if all(pid in tree for pid in pids) else DeviceUsers.HIDDEN)


def recorded(seen, library):
    """Return what the sampler says of two cards: who was seen on each, and whether CUDA was loaded."""
    meters, series = [], []

    def add(channel, raws):
        t_ns = np.arange(len(raws), dtype=np.int64) * 1_000_000_000
        series.append(Series(channel, t_ns, np.array(raws, dtype=np.float64), np.zeros_like(t_ns)))

    for index, raws in enumerate(seen):
        channel = Channel(Domain("gpu", index), USERS, "gauge", "1", 1.0, 1_000_000_000, "nvml_processes")
        meters.append(Meter(channel.domain, (channel,), "measured", "device", "GPU"))
        add(channel, raws)
    if library is not None:
        add(Channel(Domain("process"), CUDA_LIBRARY, "gauge", "1", 1.0, 2_000_000_000, "proc"), [library])
    return Recording(tuple(meters), tuple(series))


def whose(seen, library, cuda=None):
    found = classify_device_use(recorded(seen, library), EMPTY_TRACE, cuda, 0, 5_000_000_000)
    return [found[f"gpu:{index}"].user for index in range(len(seen))]


NOBODY, OTHERS, OURS_SEEN, HIDDEN, EMPTY = (float(one) for one in DeviceUsers)
NO_CUDA, IN_PROCESS, IN_CHILD = 0, 1, 2
STARTED = CudaUse(initialised=True, library=True)
ON_GPU_1 = CudaUse(initialised=True, library=True, domains=frozenset({"gpu:1"}))


@pytest.mark.parametrize(
    ("seen", "library", "cuda", "expected"),
    [
        ([[EMPTY]], NO_CUDA, CudaUse(library=False), ["others"]),
        ([[EMPTY]], IN_PROCESS, CudaUse(library=True), ["unknown"]),
        ([[EMPTY]], IN_CHILD, CudaUse(library=False), ["unknown"]),
        ([[EMPTY]], NO_CUDA, CudaUse(library=True), ["unknown"]),  # it was loaded after the last look
        ([[EMPTY]], None, None, ["unknown"]),
        ([[HIDDEN]], NO_CUDA, CudaUse(library=False), ["unknown"]),
        ([[OTHERS, HIDDEN]], IN_PROCESS, None, ["unknown"]),
        ([[NOBODY, OTHERS]], IN_PROCESS, CudaUse(library=True), ["others"]),
        ([[OTHERS]], IN_PROCESS, STARTED, ["unknown"]),
        ([[OTHERS, OURS_SEEN, OTHERS]], IN_PROCESS, None, ["ours"]),
        ([[OURS_SEEN], [OTHERS]], IN_PROCESS, STARTED, ["ours", "others"]),
        ([[OURS_SEEN], [NOBODY]], IN_PROCESS, STARTED, ["ours", "others"]),
        ([[EMPTY], [EMPTY]], IN_PROCESS, ON_GPU_1, ["others", "ours"]),
        ([[EMPTY], [EMPTY]], IN_CHILD, ON_GPU_1, ["unknown", "ours"]),
        ([[]], NO_CUDA, CudaUse(library=False), None),  # nobody looked: nothing is said
    ],
)
def test_what_proves_that_a_card_is_others(seen, library, cuda, expected):
    if expected is None:
        assert not classify_device_use(recorded(seen, library), EMPTY_TRACE, cuda, 0, 5_000_000_000)
    else:
        assert whose(seen, library, cuda) == expected


def test_a_card_that_the_user_named_counts_whoever_used_it():
    found = classify_device_use(
        recorded([[OTHERS], [OTHERS]], NO_CUDA), EMPTY_TRACE, None, 0, 5_000_000_000, frozenset({"gpu:1"})
    )
    assert {name: use.user for name, use in found.items()} == {"gpu:0": "others", "gpu:1": "ours"}
