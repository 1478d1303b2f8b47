"""Who meters what: nothing twice on one machine, and nothing of it by nobody."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.support.ranks import meter
from torchwatt.core.job import RankPlace
from torchwatt.core.meter import Unavailable
from torchwatt.core.terms import Domain
from torchwatt.distributed.rank_assignment import assign_meters
from torchwatt.sensors.protocol import Discovery, MeteredSource


def found(gpus, packages=1, modelled=False):
    cards = tuple(meter(Domain("gpu", n)) for n in range(gpus))
    host = tuple(meter(Domain("cpu", n)) for n in range(packages))
    models = tuple(meter(Domain(kind), "process", "modelled") for kind in ("cpu", "ram")) if modelled else ()
    keys = {c.key: ["uuid", "x"] for m in cards for c in m.channels}
    sources = [MeteredSource(cards, {"kind": "nvml", "channels": keys})] if cards else []
    sources += [MeteredSource(part, {"kind": "x"}) for part in (host, models) if part]
    return Discovery(tuple(sources), (Unavailable("dram", "none here"),))


def place(rank, size, per_node=None):
    per_node = per_node or size
    return RankPlace(rank, size, rank % per_node, per_node, rank // per_node, "job", "torchrun")


@given(gpus=st.integers(0, 9), packages=st.integers(0, 2), size=st.integers(2, 6))
def test_every_meter_of_a_machine_is_somebodys_and_only_ones(gpus, packages, size):
    metered = []
    for rank in range(size):
        mine = assign_meters(found(gpus, packages), place(rank, size), None)
        metered += [str(m.domain) for m in mine.discovery.meters]
        assert {*mine.own, *mine.shared, *mine.excluded} == {str(m.domain) for m in mine.discovery.meters}
        assert not mine.excluded or rank == 0
    expected = [f"gpu:{n}" for n in range(gpus)] + [f"cpu:{n}" for n in range(packages)]
    assert set(metered) == set(expected)
    if gpus >= size or gpus == 0:
        assert sorted(metered) == sorted(expected)


def test_the_reader_of_the_rest_is_not_told_of_what_others_meter():
    mine = assign_meters(found(4), place(2, 4), None)
    (source,) = [s for s in mine.discovery.sources if s.spec["kind"] == "nvml"]
    assert list(source.spec["channels"]) == ["gpu:2/energy"]
    assert mine.own == ("gpu:2",)


def test_cuda_knows_better_than_the_local_rank():
    assert assign_meters(found(4), place(2, 4), 3).own == ("gpu:3",)


def test_a_rank_that_is_shown_one_gpu_has_that_one():
    assert assign_meters(found(1), place(3, 4), None).own == ("gpu:0",)


def test_a_rank_that_leads_no_machine_says_where_the_package_is():
    mine = assign_meters(found(2), place(1, 2), None)
    assert [gone.domain for gone in mine.discovery.unavailable] == ["cpu:0"]
    assert "first rank" in mine.discovery.unavailable[0].reason


def test_a_model_of_the_own_share_is_every_ranks_own():
    for rank in range(2):
        assert assign_meters(found(0, 0, modelled=True), place(rank, 2), None).own == ("cpu", "ram")


def test_fewer_gpus_than_ranks_is_said():
    codes = {event.code for event in assign_meters(found(2), place(3, 4), None).discovery.events}
    assert "RANK_SHARES_GPU" in codes


def test_one_rank_alone_meters_everything():
    everything = found(3)
    assert assign_meters(everything, replace(place(0, 1), local_world_size=1), None).discovery == everything
