"""The example notebook, top to bottom in a real kernel."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.notebook.kernel import reports, value
from tests.support.heavy import one_of

NOTEBOOKS = ("the example", "the README")  # each trains in a kernel of its own: the commit chooses one
NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "energy.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(notebook):
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}


@pytest.mark.slow
@one_of(NOTEBOOKS, "the example")
def test_it_runs_and_every_cell_shows_what_it_promises(notebook):
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()  # seconds of one cell: it trains for two
    code = {cell.source.splitlines()[0]: cell for cell in notebook.cells if cell.cell_type == "code"}
    report, smaller = [shown for cell in code.values() for shown in reports(cell)]
    assert "conv2" in smaller["text/plain"]
    for name in ("conv1", "head", "backward", "(optimizer)", "per image", "FRA"):
        assert name in report["text/plain"]
    assert "<script" not in report["text/html"]
    measured = code["%%energy -o run --region FRA"]
    assert float(re.search(r"([\d.]+)% of the digits", value(measured))[1]) > 95
    said = [value(cell) for first, cell in code.items() if first.startswith("print(")]
    assert [float(text.split()[0]) > 0 for text in said] == [True, True]
    compared = value(code["import pandas as pd"])
    assert {"32 channels", "8 channels", "head", "(optimizer)"} <= set(re.split(r"\s{2,}|\n", compared))
    assert "run.csv" in value(code["import tempfile"])
