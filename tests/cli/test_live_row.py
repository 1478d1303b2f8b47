"""`torchwatt run --live` on a terminal: what stays on the screen is what plain Python leaves there, and the report."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import pytest

from tests.support.heavy import some_of
from torchwatt.cli.live_row import has_live_terminal
from torchwatt.cli.terminal_row import render_row

pyte = pytest.importorskip("pyte", reason="pyte emulates the terminal: pip install pyte")
from tests.support.terminal import COLUMNS, ROW, ROWS, Terminal  # noqa: E402  # it needs pyte

pytestmark = [pytest.mark.timeout(120)]

WAIT = "import time\nend = time.monotonic() + 2.2\n"
PROGRAMS = {
    "many lines": WAIT + "n = 0\nwhile time.monotonic() < end:\n    n += 1\n    time.sleep(.05)\n"
    "for n in range(30):\n    print('line', n)",
    "lines while it runs": WAIT + "for n in range(22):\n    print('line', n, flush=True)\n    time.sleep(.1)",
    "no end of line": WAIT + "print('waiting', end='', flush=True)\ntime.sleep(2.2)\nprint(' done', end='')",
    "a bar of its own": WAIT
    + "import sys\nfor n in range(11):\n    print(f'\\r{n:3} of 10', end='', file=sys.stderr)\n"
    "    time.sleep(.2)\nprint(file=sys.stderr)",
    "traceback": WAIT + "print('out')\ntime.sleep(2.2)\n{}['key']",
    "exit 3": WAIT + "import sys\ntime.sleep(2.2)\nsys.exit('the config is wrong')",
    "exit without a word": WAIT + "import os\nprint('out', flush=True)\ntime.sleep(2.2)\nos._exit(9)",
    "SIGKILL": WAIT + "import os, signal\nprint('out')\ntime.sleep(2.2)\nos.kill(os.getpid(), signal.SIGKILL)",
    "exec": WAIT + "import os, sys\nprint('first', flush=True)\ntime.sleep(2.2)\n"
    "os.execv(sys.executable, [sys.executable, '-c', 'print(\"second\")'])",
    "fork of a daemon": WAIT
    + "import os, sys\ntime.sleep(2.2)\nif not os.fork():\n    time.sleep(5)\n    os._exit(0)\n"
    "print('parent')",
    "wait for any child": WAIT + "import os\ntime.sleep(2.2)\ntry:\n    os.waitpid(-1, os.WNOHANG)\n"
    "except ChildProcessError:\n    print('no child')",
    "threads": WAIT + "import threading\ntime.sleep(2.2)\nprint([t.name for t in threading.enumerate()])",
}


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "torchwatt", "run", "--layers", "off", "--no-journal", "-q", *options, "train.py"]


@pytest.mark.slow
@pytest.mark.parametrize("name", some_of(PROGRAMS, 3))
def test_a_program_leaves_on_the_terminal_what_it_leaves_without_us(name, tmp_path):
    (tmp_path / "train.py").write_text(PROGRAMS[name])
    plain = Terminal([sys.executable, "train.py"], tmp_path)
    live = Terminal(command("--live"), tmp_path)
    assert live.status == plain.status
    assert live.text == plain.text
    assert live.rows
    assert live.screen.margins is None  # the whole terminal scrolls again


def test_the_row_grows_and_is_gone_before_the_report(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAMS["lines while it runs"])
    live = Terminal([part for part in command("--live") if part != "-q"], tmp_path)
    assert live.status == 0
    assert len(live.rows) >= 2
    assert "line 21" in live.text
    assert not ROW.search(live.text)
    assert "measuring" in live.text  # the report's last block


@pytest.mark.parametrize("term", some_of(["dumb", ""], 1))
def test_a_terminal_without_cursor_movements_is_left_alone(term, tmp_path):
    (tmp_path / "train.py").write_text(PROGRAMS["traceback"].replace("2.2", "1.2"))
    plain = Terminal([sys.executable, "train.py"], tmp_path, TERM=term)
    live = Terminal(command("--live"), tmp_path, TERM=term)
    assert (live.text, live.status, live.rows) == (plain.text, plain.status, [])


def test_a_pipe_gets_nothing(tmp_path):
    (tmp_path / "train.py").write_text("import time\nprint('out')\ntime.sleep(1.2)\n1 / 0")
    seen = [
        subprocess.run(what, cwd=tmp_path, capture_output=True, check=False)
        for what in ([sys.executable, "train.py"], command("--live"))
    ]
    assert [(one.returncode, one.stdout, one.stderr) for one in seen[:1]] == [
        (one.returncode, one.stdout, one.stderr) for one in seen[1:]
    ]


def test_only_a_terminal_is_live():
    assert not has_live_terminal({"TERM": "dumb"})
    assert not has_live_terminal({})


@pytest.mark.parametrize("styled", [True, False], ids=["rich", "plain"])
@pytest.mark.parametrize("columns", [1, 10, 40, 200])
@pytest.mark.parametrize("text", ["torchwatt 3 s · 45.3 W · 1.20 kJ · layers.*.注意 55%", "x" * 300, ""])
def test_a_row_fits_in_its_terminal(columns, text, styled, monkeypatch):
    if not styled:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    screen = pyte.Screen(columns + 1, 3)
    pyte.Stream(screen).feed(f"\x1b[3;1H{render_row(text, columns)}")
    assert [line.strip() for line in screen.display[:2]] == ["", ""]
    assert (columns < 10) or screen.display[2].strip()[:6] == text[:6]


def test_numbers_stand_out_where_rich_is_installed(monkeypatch):
    assert "\x1b[1m45.3 W\x1b[0m" in render_row("torchwatt 3 s · 45.3 W", 40)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert render_row("torchwatt 3 s · 45.3 W", 40) == "torchwatt 3 s · 45.3 W"
    assert render_row("torchwatt 3 s · 45 W", 10) == "torchwatt "


@pytest.mark.alone  # counts rows in real time
def test_a_stopped_program_gives_the_row_back(tmp_path):
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    ended, held = os.pipe()
    code = f"from torchwatt.cli import terminal_row as t; t.HIDDEN_AFTER_S = 0.5; t.main(['{held}'])"
    helper = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=theirs, pass_fds=(held,))
    os.close(held)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    helper.stdin.write(b"torchwatt 1 s\n")
    helper.stdin.flush()
    shown, deadline_s = [""], time.monotonic() + 20
    while time.monotonic() < deadline_s and len(shown) < 3:
        if select.select([ours], [], [], 0.1)[0]:
            stream.feed(os.read(ours, 1 << 16))
            row = screen.display[ROWS - 1].strip()
            shown += [row] if row != shown[-1] else []
    assert shown == ["", "torchwatt 1 s", ""]
    assert screen.margins is None
    helper.stdin.close()
    assert os.read(ended, 1) == b""
    assert helper.wait(10) == 0
    for fd in (ours, theirs, ended):
        os.close(fd)
