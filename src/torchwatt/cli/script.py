"""`torchwatt run SCRIPT ARGS`: somebody's script as it is, under the profiler."""

from __future__ import annotations

import importlib.util
import io
import runpy
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torchwatt.core.errors import ConfigError, TorchwattError
from torchwatt.metrics import named
from torchwatt.session import profile


def run_script(
    script: str,
    args: Sequence[str],
    *,
    module: bool,
    quiet: bool,
    options: dict[str, Any],
    metrics: Sequence[str] = (),
) -> int:
    """Run a script as `python SCRIPT ARGS` would, and print the report to stderr.

    The script's own exit code and its own exception are what the caller gets: both pass through untouched, after
    the report of what ran until then. The run ends when the script's threads have ended, as the program would.

    Raises:
        Refused: There is no such script, or it cannot be profiled as asked.
    """
    run, before = None, set(threading.enumerate())
    try:
        with ExitStack() as stack:
            stack.enter_context(_as_main(script, args, module=module))
            try:
                execute = _module(script) if module else _script(script)
                for where in metrics:
                    stack.enter_context(named(where))
                run = stack.enter_context(profile(name=Path(script).name, **options))
            except TorchwattError as error:
                raise Refused(str(error)) from error
            try:
                execute()
            finally:
                _wait_for_threads(before)
    finally:
        if run is not None and not quiet:
            print(run, file=sys.stderr)
    return 0


class Refused(Exception):  # noqa: N818  it is no fault
    """Nothing was run, and why: apart from the same errors raised by the script itself, which are its own."""


def _module(name: str) -> Callable[[], None]:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(f"no module named {name}")
    return lambda: _discard(runpy.run_module(name, run_name="__main__", alter_sys=True))


def _script(script: str) -> Callable[[], None]:
    path = Path(script).absolute()
    if script == "-":
        return lambda: _execute(sys.stdin.read(), "<stdin>")
    if path.is_dir() or path.suffix in {".zip", ".pyz"}:
        return lambda: _discard(runpy.run_path(str(path), run_name="__main__"))
    if not path.is_file():
        raise ConfigError(f"no such script: {script}")
    with io.open_code(str(path)) as file:
        source = file.read()
    return lambda: _execute(source, str(path))


def _execute(source: str | bytes, filename: str) -> None:
    """Run source as the module `__main__`, which stays: what the script pickles or calls at exit is found there."""
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if filename != "<stdin>":
        main.__file__, main.__loader__ = filename, SourceFileLoader("__main__", filename)
    sys.modules["__main__"] = main
    # The user's own program, named on the command line.
    exec(compile(source, filename, "exec", dont_inherit=True), main.__dict__)  # noqa: S102


def _discard(_: object) -> None:
    """Return nothing."""


def _wait_for_threads(before: Collection[threading.Thread]) -> None:
    """Wait for the threads that the script began, as the interpreter does at its end.

    The workers of a pool that nobody shut down wait for work for ever: what `concurrent.futures` left with the
    interpreter for its end tells them that no more comes. Each callback is taken off its list, so it runs once.
    """
    own = _begun_since(before)
    at_end: list[Callable[[], object]] = getattr(threading, "_threading_atexits", [])
    while own and at_end:
        at_end.pop()()
    while own:
        for thread in own:
            thread.join()
        own = _begun_since(before)  # a thread may have begun others


def _begun_since(before: Collection[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in before]


@contextmanager
def _as_main(script: str, args: Sequence[str], *, module: bool) -> Iterator[None]:
    """Set `sys.argv` and `sys.path[0]` as Python does for a script, and put them back."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *args]
    inside = module or script == "-"
    sys.path[0] = "" if inside else str(Path(script).resolve().parent)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
