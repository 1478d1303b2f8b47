"""Runs a Python program as `python` would: finds it, makes it `__main__`, executes it, and prints how it ended."""

from __future__ import annotations

import atexit
import builtins
import importlib.util
import io
import os
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import NoReturn

from torchwatt.core.errors import ConfigError
from torchwatt.core.tracebacks import hide_own_frames, skip_own_frames

INTERPRETER = re.compile(r"python[\d.]*(\.exe)?")
MAX_SOURCE_BYTES = 1 << 28
ARCHIVE_SUFFIXES = frozenset({".zip", ".pyz", ".egg", ".whl"})


@dataclass(slots=True)
class Program:
    """A program to run; its own code runs in `execute` only."""

    script: str
    args: Sequence[str]
    is_module: bool = False
    source: bytes = b""  # of a script that is one file
    main: ModuleType = field(default_factory=lambda: ModuleType("__main__"))

    def __post_init__(self) -> None:
        """Check that the program exists and can be run.

        Raises:
            ConfigError: The script or module does not exist.
        """
        self.main.__dict__["__builtins__"] = builtins  # the module: programs look names up in it
        if sys.version_info < (3, 14):
            self.main.__annotations__ = {}
        path = Path(self.script)
        if self.is_module:
            if not _module_exists(self.script.partition(".")[0]):
                raise ConfigError(f"no module named {self.script}")
        elif self.script == "-":
            self.source = sys.stdin.buffer.read() if sys.stdin is not None else b""
        elif INTERPRETER.fullmatch(path.name) and not path.is_dir():
            raise ConfigError(f"{self.script} is the Python interpreter: {_hint_without_python(self.args)}")
        elif not path.exists():
            raise ConfigError(f"no such script: {self.script}{_command_hint(self.script)}")
        elif not self._is_packed:
            with io.open_code(str(path.absolute())) as file:
                self.source = file.read(MAX_SOURCE_BYTES + 1)
            if len(self.source) > MAX_SOURCE_BYTES:
                raise ConfigError(f"{self.script} has more than {MAX_SOURCE_BYTES} bytes: this is not a script")

    @property
    def _is_packed(self) -> bool:
        path = Path(self.script)
        return path.is_dir() or path.suffix in ARCHIVE_SUFFIXES

    def _first_path(self) -> str:
        """Return what Python puts first on `sys.path`."""
        if self.is_module:
            return str(Path.cwd())
        if self.script == "-":
            return ""
        return str(Path(self.script).absolute()) if self._is_packed else str(Path(self.script).resolve().parent)

    def execute(self) -> BaseException | None:
        """Run the program as `__main__`; return the exception that ended it, None if it ended normally.

        `sys.argv`, `sys.path` and `__main__` stay set, because exit handlers and pickling need them.
        """
        sys.argv = [self.script, *self.args]
        if not sys.flags.safe_path:
            sys.path[0] = self._first_path()
        elif not self.is_module and self._is_packed:
            sys.path.insert(0, self._first_path())
        sys.modules["__main__"] = self.main
        try:
            # The user's own program, named on the command line.
            exec(self._code(), self.main.__dict__)  # noqa: S102
        except BaseException as error:  # every way to end: `print_end` and the caller handle it as Python does
            error.__traceback__ = skip_own_frames(error.__traceback__)
            hide_own_frames(error)
            return error
        return None

    def _code(self) -> CodeType:
        """Return the program's code and prepare `__main__`; this may import the packages that contain the program."""
        if self.is_module:
            spec = _spec_of_module(self.script)
            sys.argv[0] = spec.origin or self.script
            return self._module_code(spec)
        path = Path(self.script).absolute()
        if self._is_packed:
            main_spec = PathFinder.find_spec("__main__", [sys.path[0]])
            if main_spec is None:
                raise SystemExit(f"{sys.executable}: can't find '__main__' module in {str(path)!r}")
            return self._module_code(main_spec)
        if self.script == "-":
            return compile(self.source, "<stdin>", "exec", dont_inherit=True)
        name, main = str(path), self.main
        main.__file__ = name
        main.__dict__["__cached__"] = None
        if path.suffix == ".pyc":
            main.__loader__ = loader = SourcelessFileLoader("__main__", name)
            return _require_code(loader.get_code("__main__"), name)
        main.__loader__ = SourceFileLoader("__main__", name)
        return compile(self.source, name, "exec", dont_inherit=True)

    def _module_code(self, spec: ModuleSpec) -> CodeType:
        code = _require_code(spec.loader.get_code(spec.name) if spec.loader is not None else None, self.script)  # type: ignore[attr-defined]
        main = self.main
        main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
        if spec.origin is not None:
            main.__file__ = spec.origin
            main.__dict__["__cached__"] = spec.cached
        return code


def print_end(error: BaseException | None) -> int | None:
    """Print what Python prints when a program ends; return its exit status, None for an interrupt.

    The interpreter does this before it waits for threads and calls exit handlers.
    """
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return _exit_status(error)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    if not hasattr(sys, "excepthook"):
        _print_stderr("sys.excepthook is missing")
        sys.__excepthook__(type(error), error, error.__traceback__)
        return None if isinstance(error, KeyboardInterrupt) else 1
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as left:
        return _exit_status(left)
    except BaseException as broken:  # as Python does: its own hook shows both
        hide_own_frames(broken)
        _print_stderr("Error in sys.excepthook:")
        sys.__excepthook__(type(broken), broken, broken.__traceback__)
        _print_stderr("\nOriginal exception was:")
        sys.__excepthook__(type(error), error, error.__traceback__)
    return None if isinstance(error, KeyboardInterrupt) else 1


def exit_or_interrupt(status: int | None) -> int:
    """Return the exit status; for None, end like a program that was interrupted, by the signal.

    Raises:
        KeyboardInterrupt: The status is None.
    """
    if status is not None:
        return status
    sys.excepthook = lambda *_: None  # already printed
    raise KeyboardInterrupt


def wait_for_threads() -> None:
    """Wait for the program's threads with the interpreter's own shutdown function.

    That function also ends the workers of thread pools that are still open; the interpreter does not repeat it. An
    interrupt ends the wait and is reported as the interpreter reports it.
    """
    try:
        import concurrent.futures.thread  # noqa: F401  it cannot be imported after this, and a report may need it

        threading._shutdown()  # type: ignore[attr-defined]
    except BaseException as error:
        hide_own_frames(error)
        frames = "".join(traceback.format_tb(error.__traceback__))
        _print_stderr(f"Exception ignored in: {threading!r}\nTraceback (most recent call last):")
        _print_stderr(f"{frames}{type(error).__name__}: {error}")


def run_exit_handlers(before_exit: Callable[[], None]) -> None:
    """Call the program's `atexit` handlers with the interpreter's own function, which does not call them again.

    Args:
        before_exit: Called before a handler ends the process by `os._exit`.
    """
    pid, plain_exit, plain_hook = os.getpid(), os._exit, sys.unraisablehook

    def exit_(status: int) -> NoReturn:
        if os.getpid() == pid:
            before_exit()
        plain_exit(status)

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        """Report a failed handler without this function: Python names its frame where a builtin failed."""
        trace = skip_own_frames(unraisable.exc_traceback)
        plain_hook(type(unraisable)((*unraisable[:2], trace, *unraisable[3:])))  # type: ignore[index, call-arg]

    os._exit, sys.unraisablehook = exit_, report
    try:
        atexit._run_exitfuncs()
    finally:
        os._exit = plain_exit
        if sys.unraisablehook is report:
            sys.unraisablehook = plain_hook


def _exit_status(error: SystemExit) -> int:
    code = error.code
    if code is None or isinstance(code, int):
        return 0 if code is None else code
    _print_stderr(str(code))
    return 1


def _print_stderr(text: str) -> None:
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # closed: Python prints nothing then
            return


def _module_exists(package: str) -> bool:
    """Return whether a module is found in the working directory or on `sys.path`, without importing it."""
    try:
        working_directory = [] if sys.flags.safe_path else [str(Path.cwd())]
        spec = PathFinder.find_spec(package, [*working_directory, *sys.path])
        return spec is not None or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _spec_of_module(name: str) -> ModuleSpec:
    """Find a module, or the `__main__` of a package, as `python -m` does."""
    spec = None
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
    if spec is not None and spec.submodule_search_locations is not None:
        main_spec = importlib.util.find_spec(f"{name}.__main__")
        if main_spec is None:
            raise SystemExit(
                f"{sys.executable}: No module named {name}.__main__; {name!r} is a package and cannot be directly "
                "executed"
            )
        return main_spec
    if spec is None:
        raise SystemExit(f"{sys.executable}: No module named {name}")
    return spec


def _require_code(code: CodeType | None, program: str) -> CodeType:
    if code is None:
        raise SystemExit(f"{sys.executable}: No code object available for {program}")
    return code


def _hint_without_python(args: Sequence[str]) -> str:
    arguments = " ".join(args) if args else "train.py"
    return f"torchwatt runs your script with the Python that it is installed in: torchwatt run {arguments}"


def _command_hint(script: str) -> str:
    if os.sep in script or shutil.which(script) is None:
        return ""
    return (
        f"; {script} is a command, and torchwatt runs a Python script or, with -m, a module: where it starts your "
        f"script with Python, have it start `-m torchwatt run train.py` instead"
    )


def own_options(args: Sequence[str], source: bytes, options: Sequence[str]) -> list[str]:
    """Return the options of `torchwatt run` among a script's arguments that do not occur in the script's source."""
    words = [arg.partition("=")[0] for arg in args]
    if "--" in words:
        words = words[: words.index("--")]
    return [word for word in dict.fromkeys(words) if word in options and word.encode() not in source]
