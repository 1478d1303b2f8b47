"""Layers of jobs beside the time that they measured themselves: communication is nobody's work."""

import pytest
import torch.distributed as dist

from tests.jobs.layers_job import ACCUMULATE, LAYERS, job

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")

STEPS = 30
KINDS = ("ddp", "accumulated", "zero", "late", "fsdp1", "fsdp2", "late fsdp2")
# Points of the block's energy. What the engine does around a layer, and ranks that share two cores, are in them;
# benchmarks/jobs_layers.py holds the closer bound.
BOUND = 0.06
# All-gathers forward and backward, and a reduce-scatter, of each layer; one reduction, and a broadcast from each rank.
CALLS = {"fsdp1": 3 * LAYERS, "fsdp2": 3 * LAYERS, "late fsdp2": 3 * LAYERS}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two ranks of each kind of job saw."""
    return job(tmp_path_factory.mktemp("pair"), KINDS, ranks=2, steps=STEPS)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What four ranks saw, which may have fewer cores than that."""
    return job(tmp_path_factory.mktemp("four"), ("ddp", "fsdp2"), ranks=4, steps=15, size=256)


def check(seen, bound):
    backward = [s / seen.seconds for s in seen.backward_s]
    reported = [j / seen.energy_j for j in seen.backward_j]
    assert reported == pytest.approx(backward, abs=bound)
    forward = [s / seen.seconds for s in seen.forward_s]
    assert [j / seen.energy_j for j in seen.forward_j] == pytest.approx(forward, abs=bound)
    communication = seen.communication_j / seen.energy_j
    assert communication > seen.talk_s / seen.seconds - bound
    work_s = sum(seen.backward_s) + sum(seen.forward_s)
    assert communication < 1 - work_s / seen.seconds + bound
    # Equal layers: each layer is as far from its own time as the others are, whatever the machine did to them.
    factors = [mine / true for mine, true in zip(reported, backward, strict=True)]
    assert max(factors) < 2.5 * min(factors)


@pytest.mark.parametrize("kind", KINDS)
def test_waiting_for_other_ranks_is_no_work_of_a_layer(pair, kind):
    for seen in pair[kind]:
        check(seen, BOUND)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_four_ranks_show_their_layers_too(four, kind):
    for seen in four[kind]:
        check(seen, 1.5 * BOUND)


@pytest.mark.parametrize("kind", KINDS)
def test_collectives_are_counted_exactly(pair, kind):
    each = CALLS.get(kind, 1)  # DDP reduces once a step, also where it accumulates
    assert ACCUMULATE > 1
    for seen in pair[kind]:
        if kind == "zero":  # a bucket of parameters from each rank
            assert seen.communication_calls % STEPS == 0
            assert seen.communication_calls >= 3 * STEPS
        else:
            assert seen.communication_calls == each * STEPS
