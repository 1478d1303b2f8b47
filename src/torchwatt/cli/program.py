"""Somebody's program as `python` would run it: found, made the module `__main__`, executed, and its end announced."""

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
from torchwatt.core.tracebacks import below_own_frames, hide_own_frames

INTERPRETER = re.compile(r"python[\d.]*(\.exe)?")
MOST_SOURCE_BYTES = 1 << 28
PACKED = frozenset({".zip", ".pyz", ".egg", ".whl"})


@dataclass(slots=True)
class Program:
    """A program that is about to run; everything of its own code happens in `execute`."""

    script: str
    args: Sequence[str]
    is_module: bool = False
    source: bytes = b""  # of a script that is one file
    main: ModuleType = field(default_factory=lambda: ModuleType("__main__"))

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ConfigError: There is no such script or module.
        """
        self.main.__dict__["__builtins__"] = builtins  # the module: programs look names up in it
        if sys.version_info < (3, 14):
            self.main.__annotations__ = {}
        path = Path(self.script)
        if self.is_module:
            if not _may_exist(self.script.partition(".")[0]):
                raise ConfigError(f"no module named {self.script}")
        elif self.script == "-":
            self.source = sys.stdin.buffer.read() if sys.stdin is not None else b""
        elif INTERPRETER.fullmatch(path.name) and not path.is_dir():
            raise ConfigError(f"{self.script} is Python itself: {_without_python(self.args)}")
        elif not path.exists():
            raise ConfigError(f"no such script: {self.script}{_command_hint(self.script)}")
        elif not self._is_packed:
            with io.open_code(str(path.absolute())) as file:
                self.source = file.read(MOST_SOURCE_BYTES + 1)
            if len(self.source) > MOST_SOURCE_BYTES:
                raise ConfigError(f"{self.script} has more than {MOST_SOURCE_BYTES} bytes: it is no script")

    @property
    def _is_packed(self) -> bool:
        path = Path(self.script)
        return path.is_dir() or path.suffix in PACKED

    def _first_path(self) -> str:
        """Return what Python puts first on `sys.path`."""
        if self.is_module:
            return str(Path.cwd())
        if self.script == "-":
            return ""
        return str(Path(self.script).absolute()) if self._is_packed else str(Path(self.script).resolve().parent)

    def execute(self) -> BaseException | None:
        """Run the program as `__main__` and return what ended it, None at its own end.

        `sys.argv`, `sys.path` and `__main__` stay as they are then: handlers at exit, and what is pickled there, need
        them.
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
        except BaseException as error:  # every end of a program: `announce` and the caller deal with it as Python does
            error.__traceback__ = below_own_frames(error.__traceback__)
            hide_own_frames(error)
            return error
        return None

    def _code(self) -> CodeType:
        """Return the program's code, `__main__` prepared for it; this may run packages that hold the program."""
        if self.is_module:
            spec = _spec_of_module(self.script)
            sys.argv[0] = spec.origin or self.script
            return self._module_code(spec)
        path = Path(self.script).absolute()
        if self._is_packed:
            found = PathFinder.find_spec("__main__", [sys.path[0]])
            if found is None:
                raise SystemExit(f"{sys.executable}: can't find '__main__' module in {str(path)!r}")
            return self._module_code(found)
        if self.script == "-":
            return compile(self.source, "<stdin>", "exec", dont_inherit=True)
        name, main = str(path), self.main
        main.__file__ = name
        main.__dict__["__cached__"] = None
        if path.suffix == ".pyc":
            main.__loader__ = loader = SourcelessFileLoader("__main__", name)
            return _known(loader.get_code("__main__"), name)
        main.__loader__ = SourceFileLoader("__main__", name)
        return compile(self.source, name, "exec", dont_inherit=True)

    def _module_code(self, spec: ModuleSpec) -> CodeType:
        code = _known(spec.loader.get_code(spec.name) if spec.loader is not None else None, self.script)  # type: ignore[attr-defined]
        main = self.main
        main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
        if spec.origin is not None:
            main.__file__ = spec.origin
            main.__dict__["__cached__"] = spec.cached
        return code


def announce(error: BaseException | None) -> int | None:
    """Print what Python prints at once when a program has ended; return its exit status, None of an interrupt.

    What the interpreter does before it waits for threads and calls what was registered for the exit.
    """
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return _exit_status(error)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    if not hasattr(sys, "excepthook"):
        _print("sys.excepthook is missing")
        sys.__excepthook__(type(error), error, error.__traceback__)
        return None if isinstance(error, KeyboardInterrupt) else 1
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as left:
        return _exit_status(left)
    except BaseException as broken:  # as Python does: its own hook shows both
        hide_own_frames(broken)
        _print("Error in sys.excepthook:")
        sys.__excepthook__(type(broken), broken, broken.__traceback__)
        _print("\nOriginal exception was:")
        sys.__excepthook__(type(error), error, error.__traceback__)
    return None if isinstance(error, KeyboardInterrupt) else 1


def leave(status: int | None) -> int:
    """Return an exit status to `sys.exit`, or end as a program that an interrupt ended: by its signal.

    Raises:
        KeyboardInterrupt: The status is None.
    """
    if status is not None:
        return status
    sys.excepthook = lambda *_: None  # it was announced already
    raise KeyboardInterrupt


def wait_for_threads() -> None:
    """Wait for the program's threads as the interpreter does at its end, with its own function.

    It tells the workers of pools that nobody shut down that no more work comes. The interpreter finds it done. An
    interrupt ends the waiting, and is reported as the interpreter reports it.
    """
    try:
        import concurrent.futures.thread  # noqa: F401  it cannot be imported after this, and a report may need it

        threading._shutdown()  # type: ignore[attr-defined]
    except BaseException as error:
        hide_own_frames(error)
        frames = "".join(traceback.format_tb(error.__traceback__))
        _print(f"Exception ignored in: {threading!r}\nTraceback (most recent call last):")
        _print(f"{frames}{type(error).__name__}: {error}")


def run_exit_handlers(before_exit: Callable[[], None]) -> None:
    """Call what the program registered with `atexit`, with the interpreter's own function: it finds none left.

    Args:
        before_exit: Called before a handler ends the process by `os._exit`, after which nothing runs any more.
    """
    pid, plain_exit, plain_hook = os.getpid(), os._exit, sys.unraisablehook

    def exit_(status: int) -> NoReturn:
        if os.getpid() == pid:
            before_exit()
        plain_exit(status)

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        """Report a failed handler without this function: Python names its frame where a builtin failed."""
        trace = below_own_frames(unraisable.exc_traceback)
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
    _print(str(code))
    return 1


def _print(text: str) -> None:
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # closed: Python says nothing then, either
            return


def _may_exist(package: str) -> bool:
    """Say whether a module or package can be found, here or where Python looks; nothing is imported."""
    try:
        here = [] if sys.flags.safe_path else [str(Path.cwd())]
        found = PathFinder.find_spec(package, [*here, *sys.path])
        return found is not None or importlib.util.find_spec(package) is not None
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
        inside = importlib.util.find_spec(f"{name}.__main__")
        if inside is None:
            raise SystemExit(
                f"{sys.executable}: No module named {name}.__main__; {name!r} is a package and cannot be directly "
                "executed"
            )
        return inside
    if spec is None:
        raise SystemExit(f"{sys.executable}: No module named {name}")
    return spec


def _known(code: CodeType | None, what: str) -> CodeType:
    if code is None:
        raise SystemExit(f"{sys.executable}: No code object available for {what}")
    return code


def _without_python(args: Sequence[str]) -> str:
    rest = " ".join(args) if args else "train.py"
    return f"torchwatt runs your script with the Python that it is installed in: torchwatt run {rest}"


def _command_hint(script: str) -> str:
    if os.sep in script or shutil.which(script) is None:
        return ""
    return (
        f"; {script} is a command, and torchwatt runs a Python script or, with -m, a module: where it starts your "
        f"script with Python, have it start `-m torchwatt run train.py` instead"
    )


def own_options(args: Sequence[str], source: bytes, options: Sequence[str]) -> list[str]:
    """Return options of `torchwatt run` among a script's arguments that the script does not seem to know."""
    words = [arg.partition("=")[0] for arg in args]
    if "--" in words:
        words = words[: words.index("--")]
    return [word for word in dict.fromkeys(words) if word in options and word.encode() not in source]
