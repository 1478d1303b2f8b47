"""What a forger plants and seals again is found, with file, row and reason; what cannot be found has its argument."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.audit.planted import honest
from tests.audit.planted.defects import PLANTS, Plant
from tests.audit.planted.forger import Forger
from torchwatt.audit import verify

LEAST, MOST_ARGUED = 150, 20


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Return one honest bundle a source, made once."""
    return honest.make_all(tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="module")
def gpu(tmp_path_factory, nvml_simulator):
    return honest.gpu(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


def by_kind(bundles):
    """Return the defects in some bundles: the first of each kind, and the others for `make test-all`."""
    kinds, found = set(), []
    for plant in PLANTS:
        if plant.bundle in bundles:
            marks = [pytest.mark.heavy] if plant.kind in kinds else []
            found.append(pytest.param(plant, marks=marks, id=plant.name))
            kinds.add(plant.kind)
    return found


def planted(plant: Plant, bundle, folder):
    """Plant a defect; return what verify says, and the places (file, row) one of which it must name."""
    forger = Forger(bundle)
    places = plant.spoil(forger, plant.variant)
    sealed = forger.reseal(folder)
    return verify(sealed), {
        (forger.file(table), None if row is None else forger.number(table, row)) for table, row in places
    }


def check(plant: Plant, bundle, folder):
    found, places = planted(plant, bundle, folder)
    if plant.argument:
        assert found.ok, f"can be found after all: {found}"
        return
    named = [finding for finding in found.findings if (finding.file, finding.row) in places]
    assert named, f"{sorted(places, key=str)} in {found}"
    assert all(finding.reason for finding in named)
    assert not [f for f in found.findings if f.code == "HASH" and "original." not in f.reason]  # the seal fits


@pytest.mark.parametrize("name", honest.MAKERS)
def test_the_bundles_that_are_spoilt_below_are_consistent_and_so_are_their_copies(bundles, name, tmp_path):
    for bundle in (bundles[name], Forger(bundles[name]).reseal(tmp_path / "again")):
        found = verify(bundle)
        assert found.ok, found
    forger = Forger(bundles[name])
    forger.settle()
    found = verify(forger.reseal(tmp_path / "settled"))
    assert found.ok, found


@pytest.mark.parametrize("plant", by_kind(honest.MAKERS))
def test_a_planted_defect_is_found_where_it_is(bundles, plant, tmp_path):
    check(plant, bundles[plant.bundle], tmp_path / "forged")


@pytest.mark.simhw
@pytest.mark.parametrize("plant", by_kind({"gpu"}))
def test_a_defect_in_what_a_gpu_left_is_found_where_it_is(gpu, plant, tmp_path):
    check(plant, gpu, tmp_path / "forged")


def test_there_are_enough_of_them_and_few_have_only_an_argument():
    assert sum(not plant.argument for plant in PLANTS) >= LEAST
    assert sum(bool(plant.argument) for plant in PLANTS) <= MOST_ARGUED
    assert max(Counter(plant.name for plant in PLANTS).values()) == 1
