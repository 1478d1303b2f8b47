"""A program that takes the modules away at its end: it ends as under plain Python, and its report is made."""

import subprocess
import sys

import pytest

ENDS = {
    "clear": "sys.modules.clear()",
    "none": "for name in set(sys.modules) - {'sys', 'builtins', '__main__'}: sys.modules[name] = None",
    "at exit": "import atexit; atexit.register(sys.modules.clear)",
    "status": "print_ = sys.exit; sys.modules.clear(); print_(3)",
    "path": "sys.path.clear(); sys.path_hooks.clear(); sys.meta_path.clear(); sys.modules.clear()",
    "threading": "[sys.modules.pop(name, None) for name in ('threading', 'os', 'warnings')]",
    "open": "import builtins; del builtins.open",
    "broken": "import json; json.dumps = json.JSONEncoder.encode = None; import math; math.fsum = None",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_without_its_modules_ends_as_it_would(end, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nprint('hello')\n{ENDS[end]}\n")
    plain = subprocess.run([sys.executable, script], capture_output=True, text=True)
    command = [sys.executable, "-m", "torchwatt", "run", "--layers", "off", "--no-journal", script]
    profiled = subprocess.run(command, capture_output=True, text=True)
    assert (profiled.returncode, profiled.stdout) == (plain.returncode, plain.stdout), profiled.stderr
    assert "Traceback" not in profiled.stderr.replace(plain.stderr, ""), profiled.stderr
    if end not in {
        "broken",
        "path",
    }:  # what a program does to functions that a report needs may cost the report, in one sentence
        assert "energy  " in profiled.stderr
    else:
        assert "energy  " in profiled.stderr or "torchwatt: the report could not be made" in profiled.stderr
