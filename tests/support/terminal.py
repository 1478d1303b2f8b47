"""A program on a terminal that is emulated."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import termios
from fcntl import ioctl

import pyte

ROWS, COLUMNS = 12, 80
ROW = re.compile(r"torchwatt \d+ s · .*J")


class Terminal:
    """A program on a terminal that is emulated; `live` is each text that its last row had."""

    def __init__(self, command: list[str], folder: object, **env: str) -> None:
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
        stream, self.rows = pyte.ByteStream(self.screen), []
        environ = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **env}
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        quiet_s = 0.0
        while process.poll() is None or quiet_s < 0.6:  # the helper restores the terminal after the program's end
            if not select.select([ours], [], [], 0.1)[0]:
                quiet_s += 0.1
                continue
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # nobody has the terminal open any more
                process.wait()
                break
            quiet_s = 0.0
            stream.feed(data)
            row = self.screen.display[ROWS - 1].rstrip()
            if ROW.search(row) and row not in self.rows:
                self.rows.append(row)
        self.status = process.wait()
        os.close(ours)

    @property
    def text(self) -> str:
        """Return all that can be scrolled to, without empty lines at the end."""
        above = ["".join(line[x].data for x in range(COLUMNS)).rstrip() for line in self.screen.history.top]
        return "\n".join([*above, *(line.rstrip() for line in self.screen.display)]).rstrip("\n")
