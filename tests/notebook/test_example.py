"""The example notebooks, top to bottom in a real kernel."""

import re
from pathlib import Path

import nbformat
import pytest
from examples import smollm2
from nbclient import NotebookClient

from tests.notebook.kernel import reports, value
from tests.support.heavy import one_of

NOTEBOOKS = ("the example", "the README")  # each trains in a kernel of its own: the commit chooses one
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def read(name):
    return nbformat.read(EXAMPLES / name, as_version=4)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_it_is_kept_without_outputs(name):
    notebook = read(name)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}


@pytest.mark.slow
@one_of(NOTEBOOKS, "the example")
def test_it_runs_and_every_cell_shows_what_it_promises():
    notebook = read("energy.ipynb")
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


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_the_notebook_of_a_language_model_shows_tokens_by_batch_prompt_and_format():
    if not smollm2.is_installed():
        pytest.skip(f"SmolLM2 is in requirements-all.txt: {smollm2.HOW}")
    notebook = read("language_model.ipynb")
    place = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=1000, kernel_name="python3", resources=place).execute()
    code = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    (report,) = [shown for cell in code.values() for shown in reports(cell)]  # the other runs show none
    for words in ("output token", "prefill", "decode", "lm_head"):
        assert words in report["text/plain"]
    assert value(code["load"]) == "'135 million parameters'"
    for figure in ("energy_per_output_token", "time_to_first_token", "steady"):
        assert figure in value(code["figures"])
    shares = value(code["layers"])
    for kind in ("MLP", "attention projections", "lm_head", "norms"):
        assert kind in shares
    batch, prompt, types = (table(value(code[name])) for name in ("batch", "prompts", "types"))
    assert batch["mJ per output token"][0] > batch["mJ per output token"][2]
    assert prompt["mJ per output token"][0] < prompt["mJ per output token"][2]
    assert prompt["mJ per input or output token"][0] > prompt["mJ per input or output token"][2]
    assert all(joules > 0 for joules in types["decode, mJ per output token"])
    assert len(types["decode, mJ per output token"]) == 3
    assert "token.csv" in value(code["keep"])


def table(text):
    """Return the numbers of each line of a printed data frame by its name."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {name: list(map(float, cells)) for name, *cells in lines if cells and re.fullmatch(r"[\d.]+", cells[0])}
