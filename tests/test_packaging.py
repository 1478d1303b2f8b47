"""What is published: a source distribution, and a wheel made of it by Python alone."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.conftest import REPOSITORY

LABEXTENSION = ".data/data/share/jupyter/labextensions/torchwatt/"
MAX_FRONT_END = 120_000
MAX_WHEEL = 1_200_000  # three quarters are our Python, as it is read
MAX_SDIST = 2_300_000  # 80 KB are recordings of an H100, 180 KB bundles and journals of earlier versions
WASTE = (".map", ".pyc", ".tsbuildinfo", "__pycache__", "node_modules", "/.yarn/", "test-output")
ONLY_SOURCE = (".ts", "tests/", "extension/", "benchmarks/", "docs/")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both where no node is to be found: the sdist from this checkout, the wheel from the sdist."""
    out, nothing = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("path")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    done = subprocess.run(
        command, env={**os.environ, "PATH": str(nothing)}, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(built):
    """Return the compressed bytes of each file of the wheel."""
    with zipfile.ZipFile(built[1]) as archive:
        return {one.filename: one.compress_size for one in archive.infolist()}


def test_a_wheel_made_of_the_sdist_without_node_holds_the_front_end(wheel):
    assert any(LABEXTENSION + "static/remoteEntry." in name for name in wheel)
    assert any(name.endswith(LABEXTENSION + "install.json") for name in wheel)
    for name in ("torchwatt/notebook/static/widget.js", "torchwatt/notebook/static/widget.css", "torchwatt/py.typed"):
        assert name in wheel
    modules = {path.relative_to(REPOSITORY / "src").as_posix() for path in (REPOSITORY / "src").rglob("*.py")}
    assert {name for name in wheel if name.endswith(".py")} == modules


def test_the_wheel_is_as_small_as_its_sources(built, wheel):
    front = sum(
        size for name, size in wheel.items() if LABEXTENSION in name or name.startswith("torchwatt/notebook/static/")
    )
    assert front <= MAX_FRONT_END
    assert built[1].stat().st_size <= MAX_WHEEL


def test_no_waste_is_published(built, wheel):
    with tarfile.open(built[0]) as archive:
        sources = archive.getnames()
    assert [name for name in wheel if any(word in name for word in WASTE + ONLY_SOURCE)] == []
    assert [name for name in sources if any(word in name for word in WASTE)] == []
    assert built[0].stat().st_size <= MAX_SDIST
