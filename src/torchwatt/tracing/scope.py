"""`scope`: the user's own names for parts of a program."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import RESERVED, ROOT
from torchwatt.core.tracebacks import drop_own_frames
from torchwatt.tracing.state import ACTIVE

P = ParamSpec("P")
R = TypeVar("R")


def scope(name: str) -> Scope:
    """Name a part of the program, as a context manager or a decorator.

    Its time is booked to `name` in phase "other", the backward pass of its results to `name` in phase "backward".
    Without a running session, and inside `torch.compile`, it does nothing.

    Raises:
        ConfigError: The name is empty, or a reserved row of the report.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"scope({name!r}): give the stretch of code a name")
    if name in RESERVED or name == ROOT:
        raise ConfigError(f"scope({name!r}): that is a row of the report's own; take another name")
    return Scope(name)


class Scope:
    """The context manager that `scope` returns; may be entered again, also recursively."""

    __slots__ = ("_open", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._open: list[Any] = []

    def __enter__(self) -> Self:
        if _compiling():
            return self
        hub = ACTIVE.hub
        self._open.append(None if hub is None else hub.scope_begins())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _compiling():
            return
        begun = self._open.pop() if self._open else None
        if begun is not None:
            begun[0].scope_ended(self.name, begun)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wrap a function so that each call of it is a range."""
        name = self.name
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                try:
                    with Scope(name):
                        return await function(*args, **kwargs)
                except BaseException as error:
                    drop_own_frames(error)
                    raise

            return cast("Callable[P, R]", run_async)

        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def run_generator(*args: Any, **kwargs: Any) -> Any:
                try:
                    with Scope(name):
                        return (yield from function(*args, **kwargs))
                except BaseException as error:
                    drop_own_frames(error)
                    raise

            return cast("Callable[P, R]", run_generator)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with Scope(name):
                    return function(*args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise

        return run


def _compiling() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())
