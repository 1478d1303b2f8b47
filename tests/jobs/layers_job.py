"""Ranks of a small job whose layers keep the time of their own work: the truth beside which a report is laid.

Each layer does its products in a function of its own and reads the clock before and after, forward and backward. What
is left of a backward call is engine, gradients and communication.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import torchwatt as tw
from tests.jobs.launch import free_port

LAYERS = 4


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
        ctx.layer.backward_s += time.perf_counter() - begun_s
        return (*gradients, None)


class Layer(nn.Module):
    """One of several equal layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))
        self.forward_s = self.backward_s = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Clocked.apply(x, self.weight, self)  # type: ignore[no-any-return, no-untyped-call]


@dataclass
class Seen:
    """One rank's truth, and what its report says; layers in order, joules of the domain that has most."""

    backward_s: list[float]
    forward_s: list[float]
    calls_s: float  # backward calls as a whole
    slow_s: float  # spent by this rank before its backward calls while others wait
    seconds: float
    backward_j: list[float]
    forward_j: list[float]
    communication_j: float
    communication_calls: int
    optimizer_j: float
    energy_j: float
    windows: int
    phases: dict[str, float]  # joules by phase


Wrap = Callable[[nn.Sequential], nn.Module]


def plain(net: nn.Sequential) -> nn.Module:
    return net


def ddp(net: nn.Sequential) -> nn.Module:
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


WRAPS: dict[str, Wrap] = {
    "ddp": ddp, "accumulated": ddp, "straggler": ddp, "zero": ddp, "fsdp1": fsdp1, "fsdp2": fsdp2, "plain": plain,
}  # fmt: skip
ACCUMULATE = 3
SLOW_S = 0.01


@contextlib.contextmanager
def sync(model: nn.Module, wanted: bool) -> Iterator[None]:
    with contextlib.nullcontext() if wanted else model.no_sync():
        yield


def train(kind: str, size: int, steps: int, budget: float) -> Seen:
    """Profile some steps of a job of one kind; all ranks take part."""
    torch.manual_seed(dist.get_rank())
    net = nn.Sequential(*(Layer(size) for _ in range(LAYERS)))
    layers = list(net)
    model = WRAPS[kind](net)
    if kind == "zero":
        optimizer: torch.optim.Optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=1e-4)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x = torch.randn(128, size, requires_grad=True)
    calls_s = slow_s = 0.0
    accumulate = ACCUMULATE if kind == "accumulated" else 1

    def step(number: int) -> None:
        nonlocal calls_s, slow_s
        optimizer.zero_grad()
        for micro in range(accumulate):
            x.grad = None
            with sync(model, accumulate == 1 or micro == accumulate - 1):
                loss = model(x).sum()
                if kind == "straggler" and (number + dist.get_rank()) % dist.get_world_size() == 0:
                    begun_s = time.perf_counter()
                    time.sleep(SLOW_S)
                    slow_s += time.perf_counter() - begun_s
                begun_s = time.perf_counter()
                loss.backward()
                calls_s += time.perf_counter() - begun_s
        optimizer.step()

    for number in range(3):
        step(number)
    for layer in layers:
        layer.forward_s = layer.backward_s = 0.0
    calls_s = slow_s = 0.0
    dist.barrier()
    with tw.profile(model, overhead_budget=budget) as run:
        begun_s = time.perf_counter()
        for number in range(steps):
            step(number)
        seconds = time.perf_counter() - begun_s
    return seen(run, layers, calls_s, slow_s, seconds)


def seen(run: tw.Run, layers: list[Layer], calls_s: float, slow_s: float, seconds: float) -> Seen:
    """Lay the report of one rank beside what its layers noted."""
    ledger = max(run.report.ledgers, key=lambda ledger: ledger.energy_j)

    def joules(fqn: str, phase: str) -> float:
        return sum(e.energy_self_j for e in ledger.entries if (e.fqn, e.phase) == (fqn, phase))

    talk = [e for e in ledger.entries if e.phase == "communication"]
    assert {e.fqn for e in talk} <= {"(communication)"}
    phases = {phase: sum(e.energy_self_j for e in ledger.entries if e.phase == phase) for phase in
              {e.phase for e in ledger.entries}}  # fmt: skip
    return Seen(
        [layer.backward_s for layer in layers],
        [layer.forward_s for layer in layers],
        calls_s,
        slow_s,
        seconds,
        [joules(str(i), "backward") for i in range(LAYERS)],
        [joules(str(i), "forward") for i in range(LAYERS)],
        sum(e.energy_self_j for e in talk),
        sum(e.calls for e in talk),
        joules("(optimizer)", "optimizer"),
        ledger.energy_j,
        0,
        phases,
    )


def rank(number: int, ranks: int, port: int, folder: str, kinds: tuple[str, ...], size: int, steps: int, budget: float,
) -> None:  # fmt: skip
    """Be one rank."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(number), WORLD_SIZE=str(ranks), LOCAL_RANK=str(number)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for kind in kinds:
        found = train(kind, size, steps, budget)
        Path(folder, f"{kind}-{number}.json").write_text(json.dumps(asdict(found)))
    dist.destroy_process_group()


def job(folder: Path, kinds: tuple[str, ...], *, ranks: int, size: int = 512, steps: int = 40, budget: float = 0.2,
) -> dict[str, list[Seen]]:  # fmt: skip
    """Run the kinds one after the other in one job; return what each rank saw, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(
        rank, (ranks, free_port(), str(folder), kinds, size, steps, budget), nprocs=ranks, start_method="spawn"
    )
    return {
        kind: [Seen(**json.loads((folder / f"{kind}-{n}.json").read_text())) for n in range(ranks)] for kind in kinds
    }
