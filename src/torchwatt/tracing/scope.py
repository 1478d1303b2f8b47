"""`tw.scope("loss")`: a name for code that is no module."""

from __future__ import annotations

import time
from contextlib import ContextDecorator
from types import TracebackType
from typing import Self

from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import RESERVED, ROOT
from torchwatt.tracing.hub import HUB
from torchwatt.tracing.log import SCOPE


class scope(ContextDecorator):  # noqa: N801  # reads as a verb, like `contextlib.suppress`
    """Book the time and the backward nodes of a block, or of a function, to a name.

    Does nothing outside a profiled run and inside `torch.compile`.

    Raises:
        ConfigError: The name is empty or one of torchwatt's own, such as `(idle)`.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name.strip() or name in {*RESERVED, ROOT}:
            raise ConfigError(f"scope({name!r}): give a name of your own, such as 'loss'")
        self.name = name
        self._began: list[tuple[int, int]] = []

    def _recreate_cm(self) -> Self:
        return type(self)(self.name)  # a decorated function may call itself

    def __enter__(self) -> Self:
        if HUB.on:
            import torch

            if not torch.compiler.is_compiling():
                self._began.append((torch._C._autograd._get_sequence_nr(), time.monotonic_ns()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._began:
            return
        end_ns = time.monotonic_ns()
        nodes, start_ns = self._began.pop()
        if HUB.on:
            import torch

            made = torch._C._autograd._get_sequence_nr()
            task = torch._C._current_graph_task_id()
            HUB.log().append((SCOPE, start_ns, end_ns, nodes, made, task, HUB.scope_number(self.name)))
