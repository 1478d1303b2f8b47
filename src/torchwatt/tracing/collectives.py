"""The collectives of torch.distributed that Python code calls: their time is communication, not the caller's.

DDP reduces gradients in C++, where nothing can be wrapped: on a GPU its kernels are seen on the device, on the host it
stays in the backward pass. An asynchronous call is timed until it returns; its wait is the caller's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torchwatt.tracing.distributed import started

NAMES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "all_to_all_single",
    "barrier", "broadcast", "broadcast_object_list", "gather", "recv", "reduce", "reduce_scatter",
    "reduce_scatter_tensor", "scatter", "send",
)  # fmt: skip


def collectives() -> Iterator[tuple[Any, str]]:
    """Yield what to wrap as (module, name): under the name that users call and the one that torch calls itself.

    Nothing where torch.distributed is not initialised: then there is no communication.
    """
    if started() is None:
        return
    for module in ("torch.distributed", "torch.distributed.distributed_c10d"):
        owner = sys.modules.get(module)
        yield from ((owner, name) for name in NAMES if owner is not None and callable(getattr(owner, name, None)))
