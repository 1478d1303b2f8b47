"""`torchwatt run SCRIPT ARGS`: runs an unmodified program under the profiler."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from torchwatt.cli.live_row import LiveRow, has_live_terminal
from torchwatt.cli.numpy_threads import hide_numpy
from torchwatt.cli.program import (
    Program,
    exit_or_interrupt,
    own_options,
    print_end,
    run_exit_handlers,
    wait_for_threads,
)
from torchwatt.core.errors import TorchwattError
from torchwatt.core.plain_text import escape_unprintable_lines, to_encodable
from torchwatt.core.report import Status
from torchwatt.metrics.energy_counters import Exporter
from torchwatt.session import Run, profile
from torchwatt.session.profile import outcome_of
from torchwatt.session.session_registry import add_exec_hook, keep_open_at_exit, remove_exec_hook


class OriginalStderr:
    """A duplicate of the initial stderr, because a script may replace, redirect or close `sys.stderr`.

    A forked child closes it, so that a daemon does not keep the terminal or a pipe open.

    Args:
        quiet: Write nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._stream: TextIO | None = None
        self._fd = -1
        if quiet or sys.stderr is None:
            return
        self._stream = sys.stderr
        with contextlib.suppress(OSError, ValueError):
            self._fd = os.dup(sys.stderr.fileno())
            self._file = os.fstat(self._fd)
            os.register_at_fork(after_in_child=self._close)

    def say(self, text: str) -> None:
        """Write text and a newline; does nothing if the stream is closed."""
        if self._stream is None:
            return
        text = to_encodable(escape_unprintable_lines(text), self._stream.encoding)
        with contextlib.suppress(OSError, ValueError):
            if self._fd < 0:
                print(text, file=self._stream, flush=True)
                return
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()  # the script's output comes first
            if os.path.samestat(os.fstat(self._fd), self._file):  # the script may have closed our descriptor
                self._write((text + "\n").encode(self._stream.encoding or "utf-8", "backslashreplace"))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _close(self) -> None:
        fd, self._fd, self._stream = self._fd, -1, None
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


class RefusedRunError(Exception):
    """The program was not started; the message is the reason. A separate type, as a script may raise TorchwattError."""


def run_script(  # noqa: PLR0913  one for each option of the command
    script: str,
    args: Sequence[str],
    *,
    module: bool,
    quiet: bool,
    options: dict[str, Any],
    metrics: Sequence[Callable[[], Exporter]] = (),
    written: Callable[[Sequence[Path]], None] = lambda _: None,
    run_options: Sequence[str] = (),
    live: bool = False,
) -> int:
    """Run a program as `python SCRIPT ARGS` would, print the report to stderr, and return its exit status.

    Output, traceback and exit are those of plain Python, in its order: the exception is printed, then threads are
    waited for, then exit handlers are called, then the run ends. `sys.argv`, `sys.path` and `__main__` stay changed.

    Args:
        script: A file, a folder or a zip file with a `__main__.py`, "-" for standard input, or a module's name.
        args: The program's own arguments.
        module: `script` is a module's name.
        quiet: Print nothing of our own.
        options: Keyword arguments of `profile()`.
        metrics: Each opens an exporter of live metrics.
        written: Called with the paths of the run's files.
        run_options: Options of `torchwatt run`; one among `args` that the script's source does not contain is reported.
        live: Show the run in the last row of the terminal, if stderr is one.

    Raises:
        Refused: The script does not exist, or an option is invalid.
        KeyboardInterrupt: An interrupt ended the program, and was printed.
    """
    stderr, pid, stack = OriginalStderr(quiet=quiet), os.getpid(), ExitStack()
    try:
        program = Program(script, args, is_module=module)
        for opened in metrics:
            stack.enter_context(opened())
        profiled = profile(name=Path(script).name, **options)
        run = profiled.__enter__()
    except TorchwattError as error:
        stack.close()
        raise RefusedRunError(str(error)) from error
    except KeyboardInterrupt:  # before the program began
        stack.close()
        return exit_or_interrupt(None)
    for option in own_options(args, program.source, run_options):
        stderr.say(
            f"torchwatt: {option} after {script} is passed to the script; for torchwatt, write "
            f"torchwatt run {option} ... {script}"
        )
    report = _FinalReport(run, profiled, stderr, LiveRow(run, shown=live and has_live_terminal()))
    add_exec_hook(report.end_replaced)
    modules = dict(sys.modules)
    hide_numpy()
    ended_by = program.execute()
    status, outcome = print_end(ended_by), outcome_of(ended_by)
    del ended_by  # as Python does: what only its frames held is freed before threads are waited for
    if os.getpid() != pid:  # a forked child: the run is the parent's
        return exit_or_interrupt(status)
    _put_back(modules)
    wait_for_threads()

    def finish() -> None:
        _put_back(modules)
        remove_exec_hook(report.end_replaced)
        try:
            report.end(*outcome)
            written(run.files)
        except TorchwattError as error:  # the script's exit status must not change
            stderr.say(f"torchwatt: {error}")
        except Exception as error:  # the script may have changed functions that the report needs
            stderr.say(f"torchwatt: the report could not be made: {type(error).__name__}: {error}")
        finally:
            stack.close()

    keep_open_at_exit()
    run_exit_handlers(finish)
    try:
        finish()
    except KeyboardInterrupt:  # during the end of the run, which is complete
        status = None
    return exit_or_interrupt(status)


def _put_back(modules: Mapping[str, ModuleType]) -> None:
    """Put back the modules that the program took out of `sys.modules`: its end and the report need them."""
    for name, module in modules.items():
        if sys.modules.get(name) is None:
            sys.modules[name] = module


class _FinalReport:
    """Prints the report of a run once: at its end, or before `os.exec*` replaces the process."""

    def __init__(self, run: Run, profiled: profile, stderr: OriginalStderr, row: LiveRow) -> None:
        self._run = run
        self._row = row
        self._profiled = profiled
        self._told = stderr
        self._shown = False
        row.start()

    def end(self, status: Status, reason: str) -> None:
        """End the run and print it, even if its end fails."""
        self._row.close()
        try:
            self._profiled.end(status, reason)
        finally:
            self.show()

    def end_replaced(self, by: str) -> None:
        """End the run as partial and print it, because the process becomes another program."""
        self.end("partial", f"replaced by {by}")
        self._told.say(f"torchwatt: this program replaced itself by {by}, which is not measured")

    def show(self) -> None:
        """Print the report and the paths of its files."""
        if self._shown:
            return
        self._shown = True
        self._told.say(repr(self._run))
        for note in self._run.file_notes:
            self._told.say(f"torchwatt: {note}")
        for path in self._run.files:
            self._told.say(f"torchwatt: written: {path}")
