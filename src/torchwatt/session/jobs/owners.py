"""Assigns meters to ranks: each rank its own device, the first rank of a machine those that its ranks share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torchwatt.core.job import Place
from torchwatt.core.meter import Meter, Unavailable
from torchwatt.core.terms import Domain
from torchwatt.sensors.protocol import Discovery, MeteredSource, Source, event

NODE_KINDS = frozenset({"cpu", "dram", "ram", "psys"})


@dataclass(frozen=True, slots=True)
class Owned:
    """Meters of this rank: `own` its device, `shared` for all ranks of the machine, `excluded` devices of no rank."""

    discovery: Discovery
    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


def owned(discovery: Discovery, place: Place, device: int | None) -> Owned:
    """Remove the meters that other ranks read.

    A modelled domain of scope "process" belongs to every rank. GPUs that no rank of this machine has are metered once,
    by its first rank, and stay outside of the total.

    Args:
        discovery: All that can be metered from here.
        place: This process's place in the job.
        device: The CUDA index of this rank's GPU; None to derive it from LOCAL_RANK.
    """
    if place.local_world_size < 2 and place.world_size < 2:
        return Owned(discovery, own=_names(discovery.meters))
    gpus = [meter for meter in discovery.meters if meter.domain.kind == "gpu"]
    mine, excluded = _gpus(gpus, place, device)
    node = [m for m in discovery.meters if m.domain.kind in NODE_KINDS and m.scope == "device"]
    own = [m for m in discovery.meters if m in mine or (m.scope == "process" and m.domain.kind in NODE_KINDS)]
    shared = node if place.leads else []
    left_out = {m.domain for m in (*gpus, *node)} - {m.domain for m in (*own, *shared, *excluded)}
    sources = tuple(_without(source, left_out) for source in discovery.sources)
    rank_events = [event("info", "RANK", "run", _sentence(place, own, shared))]
    if place.local_rank >= len(gpus) > 0 and device is None:
        rank_events.append(
            event("warning", "RANK_SHARES_GPU", "run", f"{len(gpus)} GPUs for {place.local_world_size} ranks")
        )
    gone = () if place.leads else tuple(_by_leader(str(meter.domain)) for meter in node)
    keep = (
        discovery.unavailable if place.leads else tuple(u for u in discovery.unavailable if u.domain.startswith("gpu"))
    )
    rank_discovery = Discovery(
        tuple(s for s in sources if s is not None), (*keep, *gone), (*discovery.events, *rank_events)
    )
    return Owned(rank_discovery, _names(own), _names(shared), _names(excluded))


def _gpus(gpus: list[Meter], place: Place, device: int | None) -> tuple[list[Meter], list[Meter]]:
    """Return this rank's GPU, and the GPUs of no rank that it meters as the machine's first rank."""
    if not gpus:
        return [], []
    gpu_index = device if device is not None else place.local_rank % len(gpus) if len(gpus) > 1 else 0
    mine = [meter for meter in gpus if meter.domain.index == gpu_index]
    if not place.leads or len(gpus) <= place.local_world_size or not mine:
        return mine, []
    taken = set(range(place.local_world_size)) | {gpu_index}
    return mine, [meter for meter in gpus if meter.domain.index not in taken]


def _without(source: Source, left_out: set[Domain]) -> Source | None:
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


def _by_leader(domain: str) -> Unavailable:
    reason = "metered by the first rank of this machine; it is in the job's merged report"
    return Unavailable(domain, reason, "torchwatt merge DIR")


def _sentence(place: Place, own: Iterable[Meter], shared: Iterable[Meter]) -> str:
    mine, all_ours = ", ".join(_names(own)) or "nothing", ", ".join(_names(shared))
    sentence = f"rank {place.rank} of {place.world_size} ({place.launcher}); this rank meters {mine}"
    return f"{sentence}, and {all_ours} for its whole machine" if all_ours else sentence


def _names(meters: Iterable[Meter]) -> tuple[str, ...]:
    return tuple(str(meter.domain) for meter in meters if any(c.quantity != "gauge" for c in meter.channels))
