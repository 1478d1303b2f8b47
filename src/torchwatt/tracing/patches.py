"""The wrappers themselves. They run around every module call of the user: each line costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchwatt.tracing.hub import Hub


class Patches:
    """Attributes that were replaced, and hooks that were registered, so that all come off again."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self._put: list[tuple[Any, str, Any, Any]] = []

    def put(self, owner: Any, name: str, replacement: Any) -> None:
        """Replace one attribute."""
        self._put.append((owner, name, getattr(owner, name), replacement))
        setattr(owner, name, replacement)

    def undo(self) -> None:
        """Put everything back; what somebody else has put on top since stays, and passes through ours unseen."""
        for handle in self.handles:
            handle.remove()
        for owner, name, original, ours in reversed(self._put):
            if getattr(owner, name) is ours:
                setattr(owner, name, original)


def wrap_call(original: Callable[..., Any], hub: Hub) -> Any:
    """Wrap `nn.Module.__call__`: note start, end and the autograd nodes made inside, also of a call that raises."""
    import torch

    is_compiling = torch.compiler.is_compiling
    sequence: Callable[[], int] = torch._C._autograd._get_sequence_nr
    task: Callable[[], int] = torch._C._current_graph_task_id
    now = time.monotonic_ns

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807  # the name shows in tracebacks
        # Inside torch.compile the wrapper must vanish: anything else breaks the user's graph.
        if is_compiling() or not hub.on:
            return original(self, *args, **kwargs)
        try:
            log = hub.local.log
        except AttributeError:
            log = hub.log()
        if log.depth and log.light:
            return original(self, *args, **kwargs)
        registry = hub.registry
        key = registry.keys.get(id(self))
        if key is None:
            key = registry.add(self)
        log.depth += 1
        nodes = sequence()
        start_ns = now()
        try:
            return original(self, *args, **kwargs)
        finally:
            end_ns = now()
            log.depth -= 1
            log.append((key, start_ns, end_ns, nodes, sequence(), task(), log.light))
            if not log.depth:
                log.root_done()

    return __call__


def wrap_backward(original: Callable[..., Any], hub: Hub, kind: int) -> Any:
    """Wrap the autograd engine's entry: note the whole pass, and look into it when a window is due."""
    import torch

    task: Callable[[], int] = torch._C._current_graph_task_id
    now = time.monotonic_ns

    @functools.wraps(original)
    def run_backward(*args: Any, **kwargs: Any) -> Any:
        if not hub.on or torch.compiler.is_compiling():
            return original(*args, **kwargs)
        log, outer = hub.log(), task()
        # A pass inside another (checkpointing) belongs to the outer one.
        open_ns = hub.open_window(log) if outer < 0 else -1
        start_ns = now()
        try:
            return original(*args, **kwargs)
        finally:
            end_ns = now()
            number = hub.close_window(log, open_ns) if open_ns >= 0 else -1
            log.append((kind, start_ns, end_ns, 0, 0, outer, number))
            if outer < 0:
                log.whole = True

    return run_backward


def wrap_timed(original: Callable[..., Any], hub: Hub, kind: int) -> Any:
    """Wrap a function of which only the time is wanted."""

    @functools.wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        if not hub.on:
            return original(*args, **kwargs)
        start_ns = time.monotonic_ns()
        try:
            return original(*args, **kwargs)
        finally:
            hub.log().append((kind, start_ns, time.monotonic_ns(), 0, 0, -1, -1))

    return timed
