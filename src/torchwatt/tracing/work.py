"""Count operations and bytes of one call of each layer, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchwatt.core.terms import Phase, Slot
from torchwatt.tracing.capture import Work, capture

PHASES: tuple[Phase, Phase] = ("forward", "backward")


def work_of(model: nn.Module, call: Callable[[], Any]) -> Mapping[Slot, tuple[float, float]]:
    """Return operations and bytes of one call of each leaf layer, forward and backward.

    Operations are counted by `torch.utils.flop_counter` (matrix products and convolutions; other operations count as
    zero). Bytes are those of all tensors that the layer's operators read and write, as if none were cached: the bytes
    of the roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009).

    Args:
        model: Its leaf modules are counted.
        call: Runs the model once, such as `lambda: model(batch)`.

    Raises:
        ConfigError: The call ran no layer of the model.
    """
    work_by_slot: dict[Slot, tuple[float, float]] = {}
    for work in capture(model, call):
        for phase in PHASES:
            counted = _count(work, phase)
            if counted is not None:
                work_by_slot |= dict.fromkeys(work.slots(phase), counted)
    return work_by_slot


def _count(work: Work, phase: Phase) -> tuple[float, float] | None:
    once = work.loop(phase)
    if once is None:
        return None
    moved = _Bytes()
    with FlopCounterMode(display=False) as operations, moved:
        once()
    return float(operations.get_total_flops()), float(moved.total)


class _Bytes(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Sum the bytes of the tensors that every operator reads and writes; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.total += sum(t.numel() * t.element_size() for t in leaves if isinstance(t, torch.Tensor))
        return out
