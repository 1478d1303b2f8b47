"""IPython in a terminal: the table once, and nothing that is meant for a browser."""

import os
import subprocess
import sys

import pexpect

IPYTHON = (
    "-m",
    "IPython",
    "--no-banner",
    "--no-confirm-exit",
    "--simple-prompt",
    "--colors=NoColor",
    "--ext=torchwatt",
)
TITLE = "torchwatt · In ["
TIMEOUT_S = 90
READY = r"In \[\d+\]: $"


def ipython(*arguments, **options):
    return subprocess.run(
        [sys.executable, *IPYTHON, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        **options,
    )


def test_a_cell_shows_the_table_once_before_its_value():
    cell = "%%energy -o run\nimport torch\nm = torch.nn.Linear(8, 8)\nm(torch.ones(2, 8)).sum().backward()\n40 + 2"
    done = ipython("-c", cell)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(TITLE) == 1
    assert "backward" in done.stdout
    assert done.stdout.index(TITLE) < done.stdout.index("42")
    assert "<div" not in done.stdout
    assert "<torchwatt" not in done.stdout
    assert done.stderr == ""


def test_on_and_off_say_what_happens_from_now_on():
    done = ipython("-c", "%energy on\n%energy off")
    assert done.returncode == 0, done.stderr
    assert "Every following cell is measured, until %energy off.\nCells are not measured." in done.stdout


def test_an_exception_in_a_command_is_its_exit_code_and_the_table_is_there():
    done = ipython("-c", "%%energy\n1 / 0")
    assert done.returncode == 1
    assert done.stdout.count(TITLE) == 1
    assert "ZeroDivisionError" in done.stdout + done.stderr


def test_at_a_prompt_ctrl_c_gives_the_prompt_back_with_the_run_kept():
    env = {**os.environ, "TERM": "dumb", "COLUMNS": "120"}
    shell = pexpect.spawn(
        sys.executable, list(IPYTHON), env=env, encoding="utf-8", timeout=TIMEOUT_S, dimensions=(60, 120)
    )
    try:
        shell.expect(READY)
        shell.sendline("import time")
        shell.expect(READY)
        shell.sendline("%energy -o run print('beg' + 'un') or time.sleep(60)")
        shell.expect("begun")
        shell.sendintr()
        if shell.expect([READY, pexpect.TIMEOUT], timeout=15):
            shell.sendintr()  # Python drops an interrupt that arrives inside a weakref callback
            shell.expect(READY)
        assert shell.before.count(TITLE) == 1
        assert "KeyboardInterrupt" in shell.before
        shell.sendline("run.status, run.report.exit_reason, run.duration_s < 60")
        shell.expect(READY)
        assert "('aborted', 'KeyboardInterrupt', True)" in shell.before
        shell.sendline("%energy")
        shell.expect(READY)
        assert shell.before.count(TITLE) == 1
    finally:
        shell.close(force=True)
