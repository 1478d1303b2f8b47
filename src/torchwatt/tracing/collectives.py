"""Find the functions to wrap so that each collective that Python starts or waits for counts as communication.

Whatever a program calls (`dist.all_reduce`, FSDP, an optimizer with sharded state) ends in a method of its process
group: those are wrapped, so that the name under which a collective was imported does not matter. An asynchronous
collective is timed at its start and at the wait for it. DDP reduces gradients in C++, where nothing can be wrapped:
`Reducer.prepare_for_backward` shows which backward calls reduce, and `join.reduction` when in them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torchwatt.tracing.rows import COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY

STARTS = (
    "_allgather_base", "_reduce_scatter_base", "all_gather_single", "all_gather_single_coalesced", "all_to_all_single",
    "allgather", "allgather_coalesced", "allgather_into_tensor_coalesced", "allreduce", "allreduce_coalesced",
    "alltoall", "alltoall_base", "barrier", "broadcast", "gather", "monitored_barrier", "recv", "recv_anysource",
    "reduce", "reduce_scatter", "reduce_scatter_single", "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced", "scatter", "send",
)  # fmt: skip
WAITS = ("wait", "synchronize")
BUFFERS = "_broadcast_coalesced"  # DDP's, before a forward pass
# Here FSDP gathers a layer's parameters and scatters its gradients, with all copies around the collectives, and here
# tensor-parallel layers wait for a functional collective.
LATE = (
    ("torch.distributed._functional_collectives", "AsyncCollectiveTensor", "trigger_wait"),
    ("torch.distributed._functional_collectives", "AsyncCollectiveTensor", "wait"),
    ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup", "unshard"),
    ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup", "wait_for_unshard"),
    ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup", "post_backward"),
    ("torch.distributed.fsdp._runtime_utils", "", "_unshard"),
    ("torch.distributed.fsdp._runtime_utils", "", "_reduce_grad"),
    ("torch.distributed.fsdp._runtime_utils", "", "_reduce_grad_no_shard"),
)


def collectives() -> Iterator[tuple[Any, str, int]]:
    """Yield what to wrap as (owner, name, key of its time), for the modules imported so far.

    Also before torch.distributed is initialised, which a script may do after profiling began.
    """
    dist = _distributed()
    if dist is None:
        return
    yield from ((dist.ProcessGroup, name, COMMUNICATION_KEY) for name in STARTS)
    yield from ((dist.Work, name, UNCOUNTED_COMMUNICATION_KEY) for name in WAITS)
    yield dist, BUFFERS, COMMUNICATION_KEY
    for module, kind, name in LATE:
        owner = sys.modules.get(module)
        if owner is not None:
            yield getattr(owner, kind, None) if kind else owner, name, UNCOUNTED_COMMUNICATION_KEY


def reducers() -> Iterator[tuple[Any, str]]:
    """Yield DDP's method that runs at the end of a forward pass if gradients will be reduced in the backward pass."""
    reducer = getattr(_distributed(), "Reducer", None)
    if reducer is not None:
        yield reducer, "prepare_for_backward"


def _distributed() -> Any:
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() else None
