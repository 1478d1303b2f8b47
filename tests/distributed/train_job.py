"""One rank of a real job, as a user would write it: DDP, then FSDP, each in a block of its own.

Arguments: the job's folder, the seconds that each block trains, the rank that is late in the second block, and the rank
that kills itself in the first one (-1: none).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchwatt as tw

LATE_S = 2.5


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10))


def train(net: nn.Module, run: tw.Run, seconds: float, killed: bool) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    x, begun = torch.randn(32, 128), time.monotonic()
    for _ in range(round(seconds / 0.02)):  # as many steps on every rank: collectives are the ranks' own clock
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()
        run.count("image", len(x))
        time.sleep(0.015)
        if killed and time.monotonic() - begun > seconds / 2:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, seconds, late, killed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    told = {"rank": rank}
    with tw.profile(net := DistributedDataParallel(model()), name="ddp", job=folder) as run:
        train(net, run, seconds, killed == rank)
        dist.barrier()
    told["ddp_j"] = run.job.energy_j if run.job is not None else None
    sharded = model()
    for layer in sharded:
        fully_shard(layer)
    fully_shard(sharded)
    if rank == late:
        time.sleep(LATE_S)
    with tw.profile(sharded, name="fsdp", job=folder, csv=f"{folder}/merged") as run:
        told["begun_ns"] = time.monotonic_ns()
        train(sharded, run, seconds, killed=False)
        dist.barrier()
    told["own_j"], told["domains"] = run.energy_j, sorted({str(x.domain) for x in run.report.ledgers})
    sys.stdout.write(json.dumps(told) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
