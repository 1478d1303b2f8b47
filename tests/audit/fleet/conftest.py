"""Forty runs in a store, and the lake that they make."""

import os

import pytest

from tests.support.fleet import write_fleet
from torchwatt.audit.fleet import open_lake
from torchwatt.audit.fleet.ingestion import ingest

RUNS = range(2, 42)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Return the folder of forty bundles, made without waiting for the disk."""
    folder = tmp_path_factory.mktemp("fleet") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        write_fleet(folder, RUNS)
    return folder


@pytest.fixture(scope="session")
def fleet_lake(store, tmp_path_factory):
    """Return their lake, which no test changes."""
    lake = open_lake(tmp_path_factory.mktemp("lake") / "lake")
    found = ingest(lake, [store])
    assert found.count("added") == len(RUNS), found.refused
    return lake
