"""Tracebacks without frames of this package: the user's program, and torch, are what failed.

A frame is in its exception's traceback by the time a handler in it runs, and a bare `raise` does not add it again: a
wrapper that takes its own frames off in such a handler leaves none, and costs nothing where nothing raises.
"""

from __future__ import annotations

from itertools import pairwise
from types import TracebackType

from torchwatt.core.errors import TorchwattError

PACKAGE = __name__.partition(".")[0]


def below_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return what is below the outermost frames that are ours."""
    while trace is not None and _is_own(trace):
        trace = trace.tb_next
    return trace


def drop_own_frames(error: BaseException) -> None:
    """Take the outermost frames that are ours off a traceback; one of nothing else shows a fault of ours, and stays."""
    error.__traceback__ = below_own_frames(error.__traceback__) or error.__traceback__


def hide_own_frames(error: BaseException) -> None:
    """Take all frames of ours off the traceback of an exception and of those behind it.

    An exception that is a fault of ours keeps its frames: they say where to look.
    """
    visited: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in visited:
            continue
        visited.add(id(current))
        if isinstance(current, TorchwattError) or not _began_here(current.__traceback__):
            current.__traceback__ = _without_own(current.__traceback__)
        pending += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions


def _is_own(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == PACKAGE


def _began_here(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _is_own(trace)


def _without_own(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback linked past our frames."""
    user_frames: list[TracebackType] = []
    while trace is not None:
        if not _is_own(trace):
            user_frames.append(trace)
        trace = trace.tb_next
    if not user_frames:
        return None
    for outer, inner in pairwise(user_frames):
        outer.tb_next = inner
    user_frames[-1].tb_next = None
    return user_frames[0]
