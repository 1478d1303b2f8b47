"""Our own recordings on a real H100 (torch 2.11, benchmarks/gpu/traces.py): a CUDA graph, its capture and four replays.

The captured forward pass has 22 kernels in an order that its source fixes, so every layer's time can be told by hand:
position by position.
"""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from torchwatt.kineto import join_trace, read_trace

RECORDINGS = Path(__file__).parent / "recordings"
BLOCKS = [f"Language_0.Sequential_0.Block_{i}" for i in range(2)]


def block(i):
    """Return the owners of a block's kernels in order: each is one kernel."""
    linear, own = 4 * i, BLOCKS[i]
    return [
        f"{own}.LayerNorm_{2 * i}",
        f"{own}.Attention_{i}.Linear_{linear}",  # q, k and v at once
        f"{own}.Attention_{i}",  # the attention itself, a function
        f"{own}.Attention_{i}.Linear_{linear + 1}",
        own,  # x +
        f"{own}.LayerNorm_{2 * i + 1}",
        f"{own}.Sequential_{i + 1}.Linear_{linear + 2}",
        f"{own}.Sequential_{i + 1}.GELU_{i}",
        f"{own}.Sequential_{i + 1}.Linear_{linear + 3}",
        own,  # x +
    ]


ORDER = ["Language_0.Embedding_0", *block(0), *block(1), "Language_0.Linear_8"]


@pytest.fixture(scope="module")
def kernels():
    with gzip.open(RECORDINGS / "h100-replay.json.gz") as file:
        events = json.load(file)["traceEvents"]
    return sorted((e["ts"], round(e["dur"] * 1_000)) for e in events if e.get("cat") == "kernel")


def test_each_kernel_of_a_replayed_graph_is_its_layers_by_the_order_of_capture(kernels):
    assert len(kernels) == 4 * len(ORDER)
    expected = Counter()
    for place, (_, ns) in enumerate(kernels):
        expected[ORDER[place % len(ORDER)]] += ns
    captured = read_trace(RECORDINGS / "h100-capture.json.gz")
    (activity,) = join_trace(read_trace(RECORDINGS / "h100-replay.json.gz"), captures=[captured]).activities
    found = Counter()
    for slot, ns in zip(activity.slot.tolist(), (activity.end_ns - activity.start_ns).tolist(), strict=True):
        assert activity.slots[slot].phase == "forward"
        found[activity.slots[slot].fqn] += ns
    assert set(found) == set(expected)
    for fqn, ns in expected.items():
        assert found[fqn] == pytest.approx(ns, abs=8)  # a nanosecond of rounding a record
    assert "4 of 4 graph replays are labelled by the order of their capture" in activity.notes


def test_without_the_capture_nothing_is_guessed(kernels):
    (activity,) = join_trace(read_trace(RECORDINGS / "h100-replay.json.gz")).activities
    assert int((activity.end_ns - activity.start_ns).sum()) == pytest.approx(sum(ns for _, ns in kernels), abs=100)
    assert not any("Linear" in slot.fqn for slot in activity.slots)
