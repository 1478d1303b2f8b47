"""What a parser may not do while it reads: run code, start a process, connect, or touch a file outside its folder."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_RUNS_CODE = frozenset({"exec", "compile", "code.__new__", "marshal.loads", "pickle.find_class"})
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
_CHANGES = frozenset({
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate",
    "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.copytree", "sqlite3.connect", "tempfile.mkdtemp",
})  # fmt: skip
# What the interpreter, its libraries and the machine's own description read on their own account.
_MAY_READ = tuple(
    dict.fromkeys(
        os.path.realpath(path)
        for path in (
            sys.prefix, sys.base_prefix, *site.getsitepackages(), *sysconfig.get_paths().values(), *sys.path,
            "/proc", "/sys", "/dev", "/etc", "/usr",
        )
        if path
    )
)  # fmt: skip


class Trespass(BaseException):
    """A parser did what none may; no `except Exception` hides it."""


class _Watch:
    def __init__(self) -> None:
        self.folder: str | None = None
        self.programs: frozenset[str] = frozenset()
        self.seen: list[str] = []

    def look(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        wrong = self._wrong(event, args)
        if wrong:
            self.seen.append(wrong)
            raise Trespass(wrong)

    def _wrong(self, event: str, args: tuple[Any, ...]) -> str:
        if event == "open":
            return self._opens(*args)
        if event in _RUNS_CODE:
            return "" if _trusted() else f"{event} {str(args)[:200]}"
        if event.startswith(_STARTS):
            program = Path(args[0]).name if args and isinstance(args[0], str) else ""
            return "" if program in self.programs else f"{event} {str(args)[:200]}"
        if event.startswith("socket."):
            return f"{event} {str(args)[:200]}"
        if event in _CHANGES:
            names = [os.fspath(arg) for arg in args if isinstance(arg, str | bytes | os.PathLike)]
            return next((f"{event} {name!r}" for name in names if not self._inside(name)), "")
        return ""

    def _opens(self, path: Any, _mode: Any, flags: Any) -> str:
        if not isinstance(path, str | bytes | os.PathLike) or self._inside(path):
            return ""
        if isinstance(flags, int) and flags & _WRITES and os.fspath(path) != os.devnull:
            return f"opens {path!r} for writing"
        real = os.path.realpath(os.fsdecode(path))
        return "" if real.startswith(_MAY_READ) or _trusted() else f"reads {path!r}"

    def _inside(self, path: str | bytes | os.PathLike[str]) -> bool:
        assert self.folder is not None
        real = os.path.realpath(os.fsdecode(path))
        return real == self.folder or real.startswith(self.folder + os.sep)


def _trusted() -> bool:
    """Tell by the frames above what is no code of the file: a lazy import, or a literal that is parsed and never run.

    numpy reads the header of an array with `ast.literal_eval`, which compiles to a tree and not to code.
    """
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") or code.co_qualname == "literal_eval":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


_WATCH = _Watch()
_HOOKED = False


@contextmanager
def watched(folder: Path, programs: frozenset[str] = frozenset()) -> Iterator[None]:
    """Raise `Trespass` on everything that a parser may not do; `programs` may be started.

    Raises:
        Trespass: Also where the parser swallowed the first one.
    """
    global _HOOKED  # noqa: PLW0603  # a hook cannot be removed, so there is one for the process
    if not _HOOKED:
        sys.addaudithook(_WATCH.look)
        _HOOKED = True
    _WATCH.seen.clear()
    _WATCH.programs = programs
    _WATCH.folder = os.path.realpath(folder)
    try:
        yield
    finally:
        _WATCH.folder = None
    if _WATCH.seen:
        raise Trespass(_WATCH.seen[0])


@contextmanager
def unwatched() -> Iterator[None]:
    """Let a target lay out its files, planted links among them, before the parser looks."""
    folder, _WATCH.folder = _WATCH.folder, None
    try:
        yield
    finally:
        _WATCH.folder = folder
