from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integrations.world import ZONES
from tests.support.powercap import FakePowercap


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakePowercap]:
    with FakePowercap(tmp_path_factory.mktemp("powercap"), ZONES) as running:
        yield running
