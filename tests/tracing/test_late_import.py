"""A session begins without torch, and traces from its import on: what the program sets before that counts."""

import subprocess
import sys
import textwrap

import pytest

from torchwatt.tracing.user_process import ImportHook

PROGRAM = """
    import os, sys
    import torchwatt as tw

    with tw.profile() as run:
        assert "torch" not in sys.modules
        run.step()
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch
        assert torch.get_num_threads() == 1
        assert type(torch.__spec__.loader).__name__ == type(torch.__loader__).__name__ == "SourceFileLoader"
        net = torch.nn.Sequential(torch.nn.Linear(64, 64))
        {steps}
    print(len(run.steps), sorted(set(run.layers.query("calls > 0").fqn)))
"""
FOUND = """optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(20):
            optimizer.zero_grad()
            net(torch.ones(8, 64)).sum().backward()
            optimizer.step()"""
MARKED = """for _ in range(20):
            net(torch.ones(8, 64))
            run.step()"""


def output_of(code, *flags):
    command = [sys.executable, *flags, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.slow
def test_a_program_sets_up_its_environment_before_torch_is_imported():
    found = output_of(PROGRAM.format(steps=MARKED))
    assert found.stdout.startswith("21 ")
    assert "'0'" in found.stdout
    assert not found.stderr


@pytest.mark.slow
def test_steps_and_modules_are_found_after_a_late_import():
    found = output_of(PROGRAM.replace("run.step()\n", "pass\n", 1).format(steps=FOUND))
    assert found.stdout.startswith("20 ")
    assert "'0'" in found.stdout


@pytest.mark.slow
def test_a_program_without_torch_imports_none():
    found = output_of(
        "import sys, torchwatt\nwith torchwatt.profile() as run: pass\nrepr(run)\nprint('torch' in sys.modules)"
    )
    assert found.stdout == "False\n"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_good.py").write_text("ready = True\n")
    (tmp_path / "late_bad.py").write_text("import late_good\nraise ImportError('half')\n")
    yield
    for name in ("late_good", "late_bad"):
        sys.modules.pop(name, None)


def test_the_call_comes_once_after_the_modules_code(modules):
    seen = []
    outer = ImportHook("late_good", lambda: seen.append(("outer", sys.modules["late_good"].ready)))
    ImportHook("late_good", lambda: seen.append(("inner", sys.modules["late_good"].ready)))
    import late_good

    assert seen == [("outer", True), ("inner", True)]
    assert type(late_good.__spec__.loader).__name__ == "SourceFileLoader"
    assert not [finder for finder in sys.meta_path if isinstance(finder, ImportHook)]
    outer.remove()


def test_an_import_that_fails_fails_as_before_and_the_next_is_waited_for(modules, tmp_path):
    seen = []
    late = ImportHook("late_bad", lambda: seen.append(1))
    with pytest.raises(ImportError, match="half"):
        import late_bad
    assert not seen
    (tmp_path / "late_bad.py").write_text("")
    import importlib

    importlib.invalidate_caches()
    sys.path_importer_cache.clear()
    import late_bad  # noqa: F401

    assert seen == [1]
    assert late not in sys.meta_path


def test_nothing_is_called_after_remove(modules):
    seen = []
    late = ImportHook("late_good", lambda: seen.append(1))
    late.remove()
    late.remove()
    import late_good  # noqa: F401

    assert not seen
