"""Assigns meters to ranks: each rank its own device, the first rank of a machine those that its ranks share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torchwatt.core.job import RankPlace
from torchwatt.core.meter import Meter, Unavailable
from torchwatt.core.terms import Domain
from torchwatt.sensors.protocol import Discovery, MeteredSource, Source, event_now

NODE_KINDS = frozenset({"cpu", "dram", "ram", "psys"})


@dataclass(frozen=True, slots=True)
class AssignedMeters:
    """Meters of this rank: `own` its device, `shared` for all ranks of the machine, `excluded` devices of no rank."""

    discovery: Discovery
    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


def assign_meters(discovery: Discovery, place: RankPlace, device: int | None) -> AssignedMeters:
    """Remove the meters that other ranks read.

    A modelled domain of scope "process" belongs to every rank. GPUs that no rank of this machine has are metered once,
    by its first rank, and stay outside of the total.

    Args:
        discovery: All that can be metered from here.
        place: This process's place in the job.
        device: The CUDA index of this rank's GPU; None to derive it from LOCAL_RANK.
    """
    if place.local_world_size < 2 and place.world_size < 2:
        return AssignedMeters(discovery, own=_domain_names(discovery.meters))
    gpus = [meter for meter in discovery.meters if meter.domain.kind == "gpu"]
    mine, excluded = _assign_gpus(gpus, place, device)
    node = [m for m in discovery.meters if m.domain.kind in NODE_KINDS and m.scope == "device"]
    own = [m for m in discovery.meters if m in mine or (m.scope == "process" and m.domain.kind in NODE_KINDS)]
    shared = node if place.is_node_leader else []
    left_out = {m.domain for m in (*gpus, *node)} - {m.domain for m in (*own, *shared, *excluded)}
    sources = tuple(_remove_meters(source, left_out) for source in discovery.sources)
    rank_events = [event_now("info", "RANK", "run", _assignment_message(place, own, shared))]
    if place.local_rank >= len(gpus) > 0 and device is None:
        rank_events.append(
            event_now("warning", "RANK_SHARES_GPU", "run", f"{len(gpus)} GPUs for {place.local_world_size} ranks")
        )
    gone = () if place.is_node_leader else tuple(_metered_by_leader(str(meter.domain)) for meter in node)
    keep = (
        discovery.unavailable
        if place.is_node_leader
        else tuple(u for u in discovery.unavailable if u.domain.startswith("gpu"))
    )
    rank_discovery = Discovery(
        tuple(s for s in sources if s is not None), (*keep, *gone), (*discovery.events, *rank_events)
    )
    return AssignedMeters(rank_discovery, _domain_names(own), _domain_names(shared), _domain_names(excluded))


def _assign_gpus(gpus: list[Meter], place: RankPlace, device: int | None) -> tuple[list[Meter], list[Meter]]:
    """Return this rank's GPU, and the GPUs of no rank that it meters as the machine's first rank."""
    if not gpus:
        return [], []
    gpu_index = device if device is not None else place.local_rank % len(gpus) if len(gpus) > 1 else 0
    mine = [meter for meter in gpus if meter.domain.index == gpu_index]
    if not place.is_node_leader or len(gpus) <= place.local_world_size or not mine:
        return mine, []
    taken = set(range(place.local_world_size)) | {gpu_index}
    return mine, [meter for meter in gpus if meter.domain.index not in taken]


def _remove_meters(source: Source, left_out: set[Domain]) -> Source | None:
    """Return the source without some meters, so that the reader opens only what is read; None if no meter remains."""
    meters = tuple(meter for meter in source.meters if meter.domain not in left_out)
    if len(meters) == len(source.meters):
        return source
    if not meters:
        return None
    keys = {channel.key for meter in meters for channel in meter.channels}
    spec = dict(source.spec)
    for part in ("channels", "files"):
        if isinstance(spec.get(part), dict):
            spec[part] = {key: value for key, value in spec[part].items() if key in keys}
    call_s = {key: cost for key, cost in source.call_s.items() if key in keys}
    return MeteredSource(meters, spec, call_s, source.edges)


def _metered_by_leader(domain: str) -> Unavailable:
    reason = "metered by the first rank of this machine; it is in the job's merged report"
    return Unavailable(domain, reason, "torchwatt merge DIR")


def _assignment_message(place: RankPlace, own: Iterable[Meter], shared: Iterable[Meter]) -> str:
    mine, all_ours = ", ".join(_domain_names(own)) or "nothing", ", ".join(_domain_names(shared))
    sentence = f"rank {place.rank} of {place.world_size} ({place.launcher}); this rank meters {mine}"
    return f"{sentence}, and {all_ours} for its whole machine" if all_ours else sentence


def _domain_names(meters: Iterable[Meter]) -> tuple[str, ...]:
    return tuple(str(meter.domain) for meter in meters if any(c.quantity != "gauge" for c in meter.channels))


_NODE_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")  # "2(x3),1": three nodes of two tasks and one of one


def rank_place(environ: Mapping[str, str], started: tuple[int, int] | None = None) -> RankPlace | None:
    """Return this process's place in its job; None without a job or if the numbers are inconsistent.

    Args:
        environ: The environment.
        started: Rank and world size of `torch.distributed` if it is initialised; they take precedence.
    """
    place = _torchrun_place(environ) or _slurm_place(environ)
    if started is None:
        return place
    rank, world_size = started
    if place is None:  # started by hand: which ranks are on this machine is unknown
        return RankPlace(rank, world_size, rank, world_size, 0, "job", "torch.distributed")
    return place if (place.rank, place.world_size) == started else replace(place, rank=rank, world_size=world_size)


def _torchrun_place(environ: Mapping[str, str]) -> RankPlace | None:
    """Read torchrun's variables (docs.pytorch.org, "torchrun (Elastic Launch)"), which other launchers set too."""
    rank, world_size = _environ_number(environ, "RANK"), _environ_number(environ, "WORLD_SIZE")
    if rank is None or world_size is None or rank >= world_size:
        return None
    local_rank, local_size = _environ_number(environ, "LOCAL_RANK"), _environ_number(environ, "LOCAL_WORLD_SIZE")
    run_id, again = environ.get("TORCHELASTIC_RUN_ID"), _environ_number(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    if local_size is None:  # the world size, unless the local rank shows that there are several machines
        local_size = world_size if local_rank in {None, rank} else max(local_rank or 0, 0) + 1
    node = _environ_number(environ, "GROUP_RANK")
    job = "job" if run_id in {None, "", "none"} else str(run_id)  # torchrun's id is "none" unless given
    return RankPlace(
        rank=rank,
        world_size=world_size,
        local_rank=rank if local_rank is None else local_rank,
        local_world_size=local_size,
        node_rank=rank // max(local_size, 1) if node is None else node,
        # A restarted gang is another attempt: the joules of the first are not overwritten.
        job=f"{job}.attempt{again}" if again else job,
        launcher="environment" if run_id is None else "torchrun",
    )


def _slurm_place(environ: Mapping[str, str]) -> RankPlace | None:
    """Read srun's variables (srun(1), "OUTPUT ENVIRONMENT VARIABLES"), only inside a step.

    A batch script has most of them too but no SLURM_STEP_ID, and is not a rank.
    """
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID"))
    rank = _environ_number(environ, "SLURM_PROCID")
    world_size = _environ_number(environ, "SLURM_STEP_NUM_TASKS") or _environ_number(environ, "SLURM_NTASKS")
    if step is None or rank is None or world_size is None or rank >= world_size:
        return None
    node, local_rank = _environ_number(environ, "SLURM_NODEID") or 0, _environ_number(environ, "SLURM_LOCALID") or 0
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    counts = tasks_per_node(tasks)
    local_size = counts[node] if node < len(counts) else _environ_number(environ, "SLURM_NTASKS_PER_NODE") or world_size
    job = f"slurm-{environ.get('SLURM_JOB_ID', environ.get('SLURM_JOBID', 'job'))}.{step}"
    again = _environ_number(environ, "SLURM_RESTART_COUNT") or 0
    return RankPlace(
        rank, world_size, local_rank, local_size, node, f"{job}.attempt{again}" if again else job, "slurm"
    )  # fmt: skip


def tasks_per_node(text: str) -> tuple[int, ...]:
    """Read Slurm's short form: `2(x3),1` is (2, 2, 2, 1)."""
    counts: list[int] = []
    for part in text.split(","):
        match = _NODE_TASKS.fullmatch(part.strip())
        if match is None or int(match[2] or 1) > 1_000_000 - len(counts):
            return ()
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def _environ_number(environ: Mapping[str, str], name: str) -> int | None:
    """Return a non-negative whole number; None for anything else, which another tool may have set."""
    text = environ.get(name, "")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else None
