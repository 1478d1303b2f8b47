"""The walk in docs/audit.md is what docs/make.py makes of a bundle, and its sums come out."""

import importlib.util
import re
from pathlib import Path

import pytest

from torchwatt.audit import verify, write_bundle

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_docs", DOCS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(text):
    """Take the numbers out: their last digits are numpy's and the estimator's, the page is about the way."""
    return re.sub(r"[\w.-]*\d[\w.-]*", "#", text)


def test_the_page_is_up_to_date(make):
    page = (DOCS / "audit.md").read_text(encoding="utf-8")
    assert words(make.audit_markdown(page)) == words(page), "make docs"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_text_and_pictures_of_the_readme_are_made_of_its_own_cells(make, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what it sets is not left to other tests
    page = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    printed = make.run_readme(page, tmp_path)
    assert printed.startswith("torchwatt · run · complete")
    pictures = {*make.PICTURES.values(), *make.VIEW_PICTURES.values()}
    assert {path.name for path in tmp_path.iterdir()} == pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_the_walk_ends_at_the_counters_two_readings(make, tmp_path):
    walk = make.walk(tmp_path)
    bundle = tmp_path / "audit"
    device, impact = (
        make.row(bundle, "device", device_id="cpu:0"),
        make.row(bundle, "impact", subject="run", criterion="gwp"),
    )
    assert f"= {impact['value']} g" in walk  # step 3 comes out at step 1, to the last digit
    layer = make.row(bundle, "layer", fqn="layer1", phase="forward")
    assert f"= {layer['energy_share']}, its" in walk
    assert f"= {layer['energy_per_call_j']} J, its" in walk
    difference_j = re.search(r"J =\n(\S+) J\.", walk)
    assert float(difference_j[1]) == pytest.approx(float(device["energy_j"]), rel=1e-9)
    assert "audit: consistent; unsigned: anyone could have made it; in chain chain.jsonl at place 1 of 1" in walk


def test_the_walk_is_the_same_every_time(make, tmp_path):
    one, two = (write_bundle(make.report(), tmp_path / name) for name in ("one", "two"))
    assert (one / "MANIFEST.sha256").read_bytes() == (two / "MANIFEST.sha256").read_bytes()
    assert verify(one).ok
