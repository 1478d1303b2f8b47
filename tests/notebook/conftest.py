from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.notebook.kernel import Kernel
from tests.notebook.places import places
from tests.support.heavy import some_of


@pytest.fixture(scope="session", autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the developer's Jupyter and IPython settings, history and kernels out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in places(tmp_path_factory.mktemp("jupyter")).items():
            patch.setenv(name, folder)
        yield


OLD_KERNEL = REPOSITORY / ".venv" / "old-kernel"


@pytest.fixture(scope="session", params=some_of(["newest ipykernel", "oldest ipykernel"], 1))
def _one_kernel(_own_places: None, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    oldest = request.param.startswith("oldest")
    if oldest and not (OLD_KERNEL / "ipykernel").is_dir():
        reason = f"no old ipykernel in {OLD_KERNEL}: `make setup` installs it"
        if os.environ.get("TORCHWATT_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Kernel(OLD_KERNEL if oldest else None) as kernel:
        version = kernel.value("__import__('ipykernel').__version__")
        assert version.startswith("6.29." if oldest else "7.")
        yield kernel


@pytest.fixture
def kernel(_one_kernel: Kernel) -> Kernel:
    """Return the kernel that the tests share, with torchwatt loaded and a model that no other test has changed."""
    _one_kernel.run(
        "%reload_ext torchwatt", "import asyncio, torch\nmodel = torch.nn.Linear(8, 8)\nones = torch.ones(2, 8)"
    )
    return _one_kernel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder whose name has a blank in it."""
    made = tmp_path / "my run"
    made.mkdir()
    return made
