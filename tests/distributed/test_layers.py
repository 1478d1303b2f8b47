"""Layers of jobs beside the time that they measured themselves: communication is nobody's work."""

from dataclasses import fields

import pytest
import torch.distributed as dist

from tests.distributed.layers_job import ACCUMULATE, LAYERS, Seen, job
from tests.support.chosen import chosen
from tests.support.heavy import heavy_unless

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed"),
    pytest.mark.slow,
    pytest.mark.alone,
]

STEPS = 24
KINDS = ("ddp", "accumulated", "late", "fsdp2", "zero", "fsdp1", "late fsdp2")
USUAL = tuple(kind for kind in KINDS if kind in chosen(KINDS[:4], 2))  # the common ones, of which the commit chooses
OTHERS = tuple(kind for kind in KINDS if kind not in USUAL)
each_kind = pytest.mark.parametrize("kind", heavy_unless(lambda kind: kind in USUAL, KINDS))
# Of the block's time. What the engine does around a layer, and ranks that share two cores, are in them;
# benchmarks/jobs_layers.py holds the closer bound.
BOUND = 0.06
# All-gathers forward and backward, and a reduce-scatter, of each layer; one reduction, and a broadcast from each rank.
CALLS = {"fsdp1": 3 * LAYERS, "fsdp2": 3 * LAYERS, "late fsdp2": 3 * LAYERS}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """What two ranks saw of each kind of job that `make test` runs."""
    return job(tmp_path_factory.mktemp("usual"), USUAL, ranks=2, steps=STEPS)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """What two ranks saw of each other kind of job."""
    return job(tmp_path_factory.mktemp("others"), OTHERS, ranks=2, steps=STEPS) if OTHERS else {}


@pytest.fixture
def pair(request, kind):
    """What two ranks saw of a kind of job."""
    return request.getfixturevalue("usual" if kind in USUAL else "others")[kind]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What four ranks saw, which may have fewer cores than that."""
    return job(tmp_path_factory.mktemp("four"), ("ddp", "fsdp2"), ranks=4, steps=20, size=256)


def together(ranks):
    """Add up what several ranks saw."""

    def total(name):
        values = [getattr(seen, name) for seen in ranks]
        return [sum(column) for column in zip(*values, strict=True)] if isinstance(values[0], list) else sum(values)

    return Seen(**{field.name: total(field.name) for field in fields(Seen)})


def check(seen, bound, *, equal=True):
    bound_s = bound * seen.seconds
    assert seen.reported_backward_s == pytest.approx(seen.backward_s, abs=bound_s)
    assert seen.reported_forward_s == pytest.approx(seen.forward_s, abs=bound_s)
    assert seen.reported_talk_s > seen.talk_s - bound_s
    assert seen.reported_talk_s < seen.seconds - sum(seen.backward_s) - sum(seen.forward_s) + bound_s
    # Equal layers: each is as far from its own time as the others are, whatever the machine did to them; in joules.
    factors = [joules / true_s for joules, true_s in zip(seen.backward_j, seen.backward_s, strict=True)]
    assert max(factors) < 2.5 * min(factors) or not equal


@each_kind
def test_waiting_for_other_ranks_is_no_work_of_a_layer(pair, kind):
    late = kind.startswith("late")  # few of its calls are recorded, and any of them may have been interrupted
    for seen in pair:
        check(seen, (1 + late) * BOUND, equal=not late)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_four_ranks_show_their_layers_too(four, kind):
    # On fewer cores than ranks any rank may be interrupted anywhere: what holds, holds of all of them together.
    check(together(four[kind]), BOUND, equal=False)


@each_kind
def test_collectives_are_counted_exactly(pair, kind):
    each = CALLS.get(kind, 1)  # DDP reduces once a step, also where it accumulates
    assert ACCUMULATE > 1
    for seen in pair:
        if kind == "zero":  # a bucket of parameters from each rank
            assert seen.communication_calls % STEPS == 0
            assert seen.communication_calls >= 3 * STEPS
        else:
            assert seen.communication_calls == each * STEPS
