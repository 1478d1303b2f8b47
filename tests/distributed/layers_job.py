"""Ranks of a small job whose layers keep the time of their own work: the truth beside which a report is laid.

Each layer does its products in a function of its own and reads the clock before and after, forward and backward. What
is left of a backward call is engine, gradients and communication.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchwatt as tw
from tests.distributed.launch import free_port
from tests.support import ready
from torchwatt.core.ledger import Entry

LAYERS = 4
ACCUMULATE = 3
LATE_S = 0.4
# Under the names of several versions of torch: what FSDP and sharded optimizers call.
COLLECTIVES = (
    "all_gather_single", "reduce_scatter_single", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather",
    "broadcast",
)  # fmt: skip


class Clock:
    """Adds up the time of what communicates, as far as the program itself sees it."""

    def __init__(self) -> None:
        self.talk_s = 0.0
        self._inside = False

    def watch(self) -> None:
        """Make collectives synchronous, and time them."""
        for name in COLLECTIVES:
            if hasattr(dist, name):
                setattr(dist, name, self._timed(getattr(dist, name)))

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return collective(*args, **kwargs)
            self._inside, begun_s = True, time.perf_counter()
            try:
                work = collective(*args, **kwargs)
                if work is not None:
                    work.wait()
                return work
            finally:
                self._inside = False
                self.talk_s += time.perf_counter() - begun_s

        return call

    def around_final_callbacks(self) -> None:
        """In a backward call, before the last gradient: time what DDP does when all gradients are there."""
        queue = torch.autograd.Variable._execution_engine.queue_callback  # type: ignore[attr-defined]

        def begins() -> None:
            begun_s = time.perf_counter()

            def ended() -> None:  # after DDP's, which was queued in between
                self.talk_s += time.perf_counter() - begun_s

            queue(ended)

        queue(begins)


CLOCK = Clock()


class Clocked(torch.autograd.Function):
    """A linear map that tells its layer how long it worked."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, layer: Layer) -> torch.Tensor:
        begun_s = time.perf_counter()
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        y = x @ weight.t()
        layer.forward_s += time.perf_counter() - begun_s
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        begun_s = time.perf_counter()
        x, weight = ctx.saved_tensors
        gradients = grads[0] @ weight, grads[0].t() @ x
        if ctx.layer.is_first:
            CLOCK.around_final_callbacks()
        ctx.layer.backward_s += time.perf_counter() - begun_s
        return (*gradients, None)


class Layer(nn.Module):
    """One of several equal layers."""

    def __init__(self, size: int, *, is_first: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))
        self.is_first = is_first
        self.forward_s = self.backward_s = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Clocked.apply(x, self.weight, self)  # type: ignore[no-any-return, no-untyped-call]


@dataclass
class Seen:
    """One rank's truth, and what its report says; layers in order, rows of the domain that has most joules.

    Truth is beside reported seconds: a rank that waits draws less, and its joules are fewer than its seconds are.
    """

    backward_s: list[float]
    forward_s: list[float]
    calls_s: float  # backward calls as a whole
    talk_s: float  # communication that the program timed itself
    seconds: float  # of the profiled block
    reported_backward_s: list[float]
    reported_forward_s: list[float]
    reported_talk_s: float
    backward_j: list[float]
    communication_calls: int


def ddp(net: nn.Sequential) -> nn.Module:
    """Reduce all gradients in one bucket, at the end: no layer computes beside it."""
    return DistributedDataParallel(net, bucket_cap_mb=1000)


def fsdp1(net: nn.Sequential) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    cpu = torch.device("cpu")
    for i, layer in enumerate(net):
        net[i] = FullyShardedDataParallel(layer, device_id=cpu)
    return FullyShardedDataParallel(net, device_id=cpu)


def fsdp2(net: nn.Sequential) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in net:
        fully_shard(layer)
    return fully_shard(net)


@dataclass(frozen=True)
class Kind:
    """A kind of job."""

    wrap: Callable[[nn.Sequential], nn.Module]
    accumulate: int = 1  # backward calls a step, of which only the last one reduces
    sharded_optimizer: bool = False
    late_s: float = 0.0  # rank 0 comes so late to the middle step
    budget: float = 0.2


KINDS = {
    "ddp": Kind(ddp),
    "accumulated": Kind(ddp, accumulate=ACCUMULATE),
    "zero": Kind(ddp, sharded_optimizer=True),
    "late": Kind(ddp, late_s=LATE_S, budget=0.05),
    "fsdp1": Kind(fsdp1),
    "fsdp2": Kind(fsdp2),
    "late fsdp2": Kind(fsdp2, late_s=LATE_S, budget=0.05),
}


def train(kind: Kind, size: int, steps: int, budget: float | None = None) -> Seen:
    """Profile some steps of a job of one kind; all ranks take part."""
    torch.manual_seed(dist.get_rank())
    net = nn.Sequential(*(Layer(size, is_first=i == 0) for i in range(LAYERS)))
    layers = list(net)
    model: Any = kind.wrap(net)
    if kind.sharded_optimizer:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer: torch.optim.Optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=1e-4)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x = torch.randn(128, size, requires_grad=True)
    calls_s = 0.0

    def step() -> None:
        nonlocal calls_s
        optimizer.zero_grad()
        for micro in range(1, kind.accumulate + 1):
            x.grad = None
            with model.no_sync() if micro < kind.accumulate else contextlib.nullcontext():
                loss = model(x).sum()
                begun_s = time.perf_counter()
                loss.backward()
                calls_s += time.perf_counter() - begun_s
        optimizer.step()

    for _ in range(3):
        step()
    for layer in layers:
        layer.forward_s = layer.backward_s = 0.0
    calls_s = CLOCK.talk_s = 0.0
    dist.barrier()
    with tw.profile(model, overhead_budget=kind.budget if budget is None else budget) as run:
        begun_s = time.perf_counter()
        for number in range(steps):
            if kind.late_s and number == steps // 2 and dist.get_rank() == 0:
                time.sleep(kind.late_s)
            step()
        seconds = time.perf_counter() - begun_s
    return seen(run, layers, calls_s, seconds)


def seen(run: tw.Run, layers: list[Layer], calls_s: float, seconds: float) -> Seen:
    """Lay the report of one rank beside what its layers noted."""
    ledger = max(run.report.ledgers, key=lambda ledger: ledger.energy_j)

    def rows(fqn: str, phase: str) -> list[Entry]:
        return [e for e in ledger.entries if (e.fqn, e.phase) == (fqn, phase)]

    def seconds_of(fqn: str, phase: str) -> float:
        return sum(e.time_self_s or 0.0 for e in rows(fqn, phase))

    talk = [e for e in ledger.entries if e.phase == "communication"]
    assert {e.fqn for e in talk} <= {"(communication)"}
    return Seen(
        backward_s=[layer.backward_s for layer in layers],
        forward_s=[layer.forward_s for layer in layers],
        calls_s=calls_s,
        talk_s=CLOCK.talk_s,
        seconds=seconds,
        reported_backward_s=[seconds_of(str(i), "backward") for i in range(LAYERS)],
        reported_forward_s=[seconds_of(str(i), "forward") for i in range(LAYERS)],
        reported_talk_s=seconds_of("(communication)", "communication"),
        backward_j=[sum(e.energy_self_j for e in rows(str(i), "backward")) for i in range(LAYERS)],
        communication_calls=sum(e.calls for e in talk),
    )


def rank(
    number: int, ranks: int, port: int, folder: str, kinds: tuple[str, ...], size: int, steps: int, budget: float | None
) -> None:
    """Be one rank."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(number), WORLD_SIZE=str(ranks), LOCAL_RANK=str(number)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    CLOCK.watch()
    for kind in kinds:
        found = train(KINDS[kind], size, steps, budget)
        Path(folder, f"{kind}-{number}.json").write_text(json.dumps(asdict(found)))
    dist.destroy_process_group()


def job(
    folder: Path, kinds: tuple[str, ...], *, ranks: int, size: int = 384, steps: int = 30, budget: float | None = None
) -> dict[str, list[Seen]]:
    """Run the kinds one after the other in one job; return what each rank saw, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = (ranks, free_port(), str(folder), kinds, size, steps, budget)
    ready.start()
    mp.start_processes(rank, asked, nprocs=ranks, start_method="forkserver")
    return {
        kind: [Seen(**json.loads((folder / f"{kind}-{n}.json").read_text())) for n in range(ranks)] for kind in kinds
    }
