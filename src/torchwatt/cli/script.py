"""`torchwatt run SCRIPT ARGS`: somebody's program as it is, under the profiler."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from torchwatt.cli.original import OriginalStderr
from torchwatt.cli.program import Program, announce, leave, own_options, run_exit_handlers, wait_for_threads
from torchwatt.cli.script_numpy import hide_numpy
from torchwatt.core.errors import TorchwattError
from torchwatt.metrics.exporter import Exporter
from torchwatt.session import Run, profile
from torchwatt.session.active import leave_open_at_exit
from torchwatt.session.profile import outcome_of
from torchwatt.session.replaced import before_exec, forget_before_exec


class Refused(Exception):  # noqa: N818  it is no fault
    """Nothing was run, and why: apart from the same errors raised by the script itself, which are its own."""


def run_script(
    script: str,
    args: Sequence[str],
    *,
    module: bool,
    quiet: bool,
    options: dict[str, Any],
    metrics: Sequence[Callable[[], Exporter]] = (),
    written: Callable[[Sequence[Path]], None] = lambda _: None,
    known: Sequence[str] = (),
) -> int:
    """Run a program as `python SCRIPT ARGS` would, print the report to stderr, and return its exit status.

    Its output, its traceback and how it ends are those of plain Python, in Python's order: what ended it is announced
    at once, then its threads are waited for, its handlers at exit are called, and then the run ends. The process is the
    program's from then on: `sys.argv`, `sys.path` and `__main__` stay.

    Args:
        script: A file, a folder or a zip file with a `__main__.py`, "-" for standard input, or a module's name.
        args: The program's own arguments.
        module: `script` is a module's name.
        quiet: Say nothing of ours, whatever happens.
        options: Of `profile()`.
        metrics: Each opens an exporter of live metrics.
        written: Called with the files of the run.
        known: Options of `torchwatt run`: one of them among `args` is mentioned if the script does not know it.

    Raises:
        Refused: There is no such script, or it cannot be profiled as asked.
        KeyboardInterrupt: An interrupt ended the program, and was announced.
    """
    told, pid, stack = OriginalStderr(quiet=quiet), os.getpid(), ExitStack()
    try:
        program = Program(script, args, is_module=module)
        for opened in metrics:
            stack.enter_context(opened())
        profiled = profile(name=Path(script).name, **options)
        run = profiled.__enter__()
    except TorchwattError as error:
        stack.close()
        raise Refused(str(error)) from error
    except KeyboardInterrupt:  # before the program began
        stack.close()
        return leave(None)
    for option in own_options(args, program.source, known):
        told.say(
            f"torchwatt: {option} after {script} goes to the script; to torchwatt: torchwatt run {option} ... {script}"
        )
    report = _Report(run, profiled, told)
    before_exec(report.replaced)
    modules = dict(sys.modules)
    hide_numpy()
    ended_by = program.execute()
    status = announce(ended_by)
    if os.getpid() != pid:  # a forked child: nothing of a run is here
        return leave(status)
    _put_back(modules)
    wait_for_threads()

    def finish() -> None:
        _put_back(modules)
        forget_before_exec(report.replaced)
        try:
            try:
                profiled.end(*outcome_of(ended_by))
            finally:
                report.show()
            written(run.files)
        except TorchwattError as error:  # the script has ended as it did
            told.say(f"torchwatt: {error}")
        except Exception as error:  # so it has where it changed functions that the report needs
            told.say(f"torchwatt: the report could not be made: {type(error).__name__}: {error}")
        finally:
            stack.close()

    leave_open_at_exit()
    run_exit_handlers(finish)
    try:
        finish()
    except KeyboardInterrupt:  # it came while the run ended, which it has
        status = None
    return leave(status)


def _put_back(modules: Mapping[str, ModuleType]) -> None:
    """Put back the modules that the program took out of `sys.modules`: its end and the report need them."""
    for name, module in modules.items():
        if sys.modules.get(name) is None:
            sys.modules[name] = module


class _Report:
    """Shows the report of a run once: at its end, or before another program takes its place."""

    def __init__(self, run: Run, profiled: profile, told: OriginalStderr) -> None:
        self._run = run
        self._profiled = profiled
        self._told = told
        self._shown = False

    def replaced(self, by: str) -> None:
        """Say that the run is over, since the process becomes another program."""
        self._profiled.end("partial", f"replaced by {by}")
        self.show()
        self._told.say(f"torchwatt: this program replaced itself by {by}: what runs from here on is not measured")

    def show(self) -> None:
        """Print the report and where its files are."""
        if self._shown:
            return
        self._shown = True
        self._told.say(repr(self._run))
        for note in self._run.file_notes:
            self._told.say(f"torchwatt: {note}")
        for path in self._run.files:
            self._told.say(f"torchwatt: written: {path}")
