"""Calls hooks before `os.exec*` replaces the process, because every run in it ends."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any, NoReturn

from torchwatt.core.tracebacks import below_own_frames

_NAMES = ("execv", "execve")  # the others of `os` call these two, and look them up when they are called
_called: list[Callable[[str], None]] = []
_wrappers: dict[str, Any] = {}


def before_exec(call: Callable[[str], None]) -> None:
    """Register a callback for `os.exec*`, called with the new program's name; the last registered is called first."""
    if not _called:
        for name in _NAMES:
            _wrappers[name] = _wrapper(getattr(os, name))
            setattr(os, name, _wrappers[name])
    _called.append(call)


def forget_before_exec(call: Callable[[str], None]) -> None:
    """Unregister a callback; the last one restores `os`, unless something else has patched it since."""
    if call in _called:
        _called.remove(call)
    for name, wrapper in _wrappers.items() if not _called else ():
        if getattr(os, name) is wrapper:
            setattr(os, name, wrapper.__wrapped__)


def _wrapper(original: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    pid = os.getpid()

    @functools.wraps(original)
    def exec_(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            if os.getpid() == pid and _called:  # in a forked child, the sessions are not ours
                _tell(args[0] if args else kwargs.get("path"))
            original(*args, **kwargs)
        except BaseException as error:
            error.__traceback__ = below_own_frames(error.__traceback__)
            raise

    return exec_


def _tell(path: Any) -> None:
    """Call the hooks if the program can be executed; `os.execvp` tries one folder after the other."""
    with contextlib.suppress(TypeError, ValueError):
        if isinstance(path, int) or os.access(path, os.X_OK):
            name = f"file descriptor {path}" if isinstance(path, int) else os.fsdecode(path)
            for call in reversed(_called[:]):
                call(name)
