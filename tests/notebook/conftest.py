from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.kernel import Kernel
from tests.notebook.places import places


@pytest.fixture(scope="session", autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the developer's Jupyter and IPython settings, history and kernels out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in places(tmp_path_factory.mktemp("jupyter")).items():
            patch.setenv(name, folder)
        yield


@pytest.fixture(scope="session")
def _one_kernel(_own_places: None) -> Iterator[Kernel]:
    with Kernel() as kernel:
        kernel.run(
            "%load_ext torchwatt", "import asyncio, torch\nmodel = torch.nn.Linear(8, 8)\nones = torch.ones(2, 8)"
        )
        yield kernel


@pytest.fixture
def kernel(_one_kernel: Kernel) -> Kernel:
    """Return the kernel that the tests share, with torchwatt loaded: each test takes names of its own."""
    _one_kernel.run("%reload_ext torchwatt")
    return _one_kernel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder whose name has a blank in it."""
    made = tmp_path / "my run"
    made.mkdir()
    return made
