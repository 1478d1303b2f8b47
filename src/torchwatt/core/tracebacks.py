"""Removes frames of this package from tracebacks of errors in the user's program and torch.

When a handler runs, the traceback already has the frame of its function, and a bare `raise` does not add it again: so a
wrapper that removes its frames in a handler leaves none, and has no cost without an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import TracebackType
from typing import Any

from torchwatt.core.errors import TorchwattError

PACKAGE = __name__.partition(".")[0]


def skip_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without its outermost frames of this package; None if there are no others."""
    while trace is not None and _is_own_frame(trace):
        trace = trace.tb_next
    return trace


def drop_own_frames(error: BaseException) -> None:
    """Remove the outermost frames of this package, unless the traceback has no others: then the error is ours."""
    error.__traceback__ = skip_own_frames(error.__traceback__) or error.__traceback__


def without_own_frames(wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Return a wrapper of a function of the program whose errors have no frames of this package."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return wrapper(*args, **kwargs)
        except BaseException as error:
            drop_own_frames(error)
            raise

    return call


def hide_own_frames(error: BaseException) -> None:
    """Remove all frames of this package from an exception's traceback, and from those of its causes and contexts.

    An exception that was raised in this package keeps its frames, which show the fault.
    """
    visited: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in visited:
            continue
        visited.add(id(current))
        if isinstance(current, TorchwattError) or not _raised_in_package(current.__traceback__):
            current.__traceback__ = _without_own_frames(current.__traceback__)
        pending += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions


def _is_own_frame(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == PACKAGE


def _raised_in_package(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _is_own_frame(trace)


def _without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of this package."""
    user_frames: list[TracebackType] = []
    while trace is not None:
        if not _is_own_frame(trace):
            user_frames.append(trace)
        trace = trace.tb_next
    if not user_frames:
        return None
    for outer, inner in pairwise(user_frames):
        outer.tb_next = inner
    user_frames[-1].tb_next = None
    return user_frames[0]
