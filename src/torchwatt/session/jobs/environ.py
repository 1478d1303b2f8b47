"""Determines this process's rank from the variables that torchrun or Slurm set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torchwatt.core.job import Place

_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")  # "2(x3),1": three nodes of two tasks and one of one


def place_of(environ: Mapping[str, str], started: tuple[int, int] | None = None) -> Place | None:
    """Return this process's place in its job; None without a job or if the numbers are inconsistent.

    Args:
        environ: The environment.
        started: Rank and world size of `torch.distributed` if it is initialised; they take precedence.
    """
    place = _torchrun(environ) or _slurm(environ)
    if started is None:
        return place
    rank, world_size = started
    if place is None:  # started by hand: which ranks are on this machine is unknown
        return Place(rank, world_size, rank, world_size, 0, "job", "torch.distributed")
    return place if (place.rank, place.world_size) == started else replace(place, rank=rank, world_size=world_size)


def _torchrun(environ: Mapping[str, str]) -> Place | None:
    """Read torchrun's variables (docs.pytorch.org, "torchrun (Elastic Launch)"), which other launchers set too."""
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if rank is None or world_size is None or rank >= world_size:
        return None
    local_rank, local_size = _number(environ, "LOCAL_RANK"), _number(environ, "LOCAL_WORLD_SIZE")
    run_id, again = environ.get("TORCHELASTIC_RUN_ID"), _number(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    if local_size is None:  # the world size, unless the local rank shows that there are several machines
        local_size = world_size if local_rank in {None, rank} else max(local_rank or 0, 0) + 1
    node = _number(environ, "GROUP_RANK")
    job = "job" if run_id in {None, "", "none"} else str(run_id)  # torchrun's id is "none" unless given
    return Place(
        rank=rank,
        world_size=world_size,
        local_rank=rank if local_rank is None else local_rank,
        local_world_size=local_size,
        node_rank=rank // max(local_size, 1) if node is None else node,
        # A restarted gang is another attempt: the joules of the first are not overwritten.
        job=f"{job}.attempt{again}" if again else job,
        launcher="environment" if run_id is None else "torchrun",
    )


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """Read srun's variables (srun(1), "OUTPUT ENVIRONMENT VARIABLES"), only inside a step.

    A batch script has most of them too but no SLURM_STEP_ID, and is not a rank.
    """
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID"))
    rank = _number(environ, "SLURM_PROCID")
    world_size = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS")
    if step is None or rank is None or world_size is None or rank >= world_size:
        return None
    node, local_rank = _number(environ, "SLURM_NODEID") or 0, _number(environ, "SLURM_LOCALID") or 0
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    counts = tasks_per_node(tasks)
    local_size = counts[node] if node < len(counts) else _number(environ, "SLURM_NTASKS_PER_NODE") or world_size
    job = f"slurm-{environ.get('SLURM_JOB_ID', environ.get('SLURM_JOBID', 'job'))}.{step}"
    again = _number(environ, "SLURM_RESTART_COUNT") or 0
    return Place(
        rank, world_size, local_rank, local_size, node, f"{job}.attempt{again}" if again else job, "slurm"
    )  # fmt: skip


def tasks_per_node(text: str) -> tuple[int, ...]:
    """Read Slurm's short form: `2(x3),1` is (2, 2, 2, 1)."""
    counts: list[int] = []
    for part in text.split(","):
        match = _TASKS.fullmatch(part.strip())
        if match is None or int(match[2] or 1) > 1_000_000 - len(counts):
            return ()
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """Return a non-negative whole number; None for anything else, which another tool may have set."""
    text = environ.get(name, "")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else None
