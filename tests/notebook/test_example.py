"""The example notebook, top to bottom in a real kernel."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "energy.ipynb"


def test_the_example_notebook_runs_and_shows_its_report():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    reports = [o for o in shown if "application/vnd.torchwatt.report.v1+json" in o.get("data", {})]
    assert len(reports) == 1
    assert "backward" in reports[0]["data"]["text/plain"]
    assert "<script" not in reports[0]["data"]["text/html"]
