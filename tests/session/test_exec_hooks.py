"""A program that becomes another one by `os.exec*` ends its runs before, and says so."""

import csv
import os
import subprocess
import sys

import torchwatt as tw

PROGRAM = """
import os, sys
import torchwatt as tw
with tw.profile(layers="off", baseline_s=0, csv="audit"):
    pid = os.fork()
    if not pid:
        os.execvp("true", ["true"])  # a child that becomes another program ends no run of its parent's
    print(os.waitpid(pid, 0)[1], os.path.exists("audit"), flush=True)
    try:
        os.execv("/no/such/program", ["x"])
    except FileNotFoundError as error:
        print(error.__traceback__.tb_next, os.path.exists("audit"), flush=True)
    os.execlp("echo", "echo", "another program")
"""


def test_a_run_ends_before_its_program_becomes_another_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "0 False\nNone False\nanother program\n"
    assert "this program replaced itself by" in done.stderr
    (row,) = csv.DictReader((tmp_path / "audit" / "run.csv").read_text().splitlines())
    assert row["status"] == "partial"


def test_os_is_as_it_was_after_a_run():
    before = os.execv, os.execve
    with tw.profile(layers="off", baseline_s=0):
        assert os.execv is not before[0]
        assert os.execv.__name__ == "execv"
    assert (os.execv, os.execve) == before
