"""`%%energy` and `%energy` in a real IPython shell."""

import pytest
from IPython.core.interactiveshell import InteractiveShell

CELL = "import torch\nm = torch.nn.Linear(8, 8)\nfor _ in range(50): m(torch.ones(2, 8)).sum().backward()\n"


@pytest.fixture
def shell():
    ip = InteractiveShell.instance()
    ip.run_line_magic("load_ext", "torchwatt")
    yield ip
    ip.run_line_magic("unload_ext", "torchwatt")
    InteractiveShell.clear_instance()


def test_the_last_expression_is_the_cells_value_and_the_run_is_stored(shell):
    result = shell.run_cell(f"%%energy -q -o run\n{CELL}40 + 2")
    assert result.result == 42
    assert shell.user_ns["run"].status == "complete"
    assert shell.user_ns["run"].energy_j is not None


def test_an_exception_passes_and_the_run_is_still_stored(shell):
    result = shell.run_cell("%%energy -q -o broken\n1 / 0")
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert shell.user_ns["broken"].status == "aborted"


def test_a_semicolon_silences_and_the_line_form_returns_its_value(shell):
    assert shell.run_cell("%energy -q sum([1, 2])").result == 3
    assert shell.run_cell("%%energy -q\n40 + 2;").result in {None, 42}


def test_mistakes_are_usage_errors(shell):
    for cell in ("%%energy\n", "%%energy --no-such-option\n1", "%%energy --region Atlantis\n1"):
        result = shell.run_cell(cell)
        error = result.error_in_exec or result.error_before_exec
        assert type(error).__name__ == "UsageError", cell


def test_unloading_leaves_no_magic_and_no_transformer(shell):
    shell.run_line_magic("reload_ext", "torchwatt")
    shell.run_line_magic("unload_ext", "torchwatt")
    assert shell.find_cell_magic("energy") is None
    assert not [t for t in shell.input_transformers_post if "torchwatt" in getattr(t, "__module__", "")]
    shell.run_line_magic("load_ext", "torchwatt")
