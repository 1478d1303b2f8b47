from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integrations.world import ZONES, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("powercap"), ZONES) as running:
        yield running
