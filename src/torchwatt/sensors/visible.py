"""Parses CUDA_VISIBLE_DEVICES by CUDA's rules; opens no device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/\d+/\d+")


@dataclass(frozen=True, slots=True)
class Pick:
    """One visible device: its NVML index and, for a slice of a GPU, the name that selected it."""

    index: int
    mig: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The visible devices in CUDA's order, and the reason if an invalid entry ended the list."""

    picks: tuple[Pick, ...]
    stopped: str = ""


class _StopError(ValueError):
    """An entry that CUDA does not accept; it and all following entries are invisible."""


def select(value: str | None, uuids: Sequence[str], migs: Mapping[str, int]) -> Selection:
    """Return the devices that a value of CUDA_VISIBLE_DEVICES shows.

    CUDA C++ Programming Guide, "CUDA Environment Variables": indices or UUIDs in any order; the first invalid
    entry hides itself and all after it. UUIDs may be shortened while they stay unique. Only one MIG device is
    ever visible to a process (NVIDIA MIG User Guide, "CUDA Device Enumeration").

    Args:
        value: The variable; None if it is unset.
        uuids: `GPU-...` of each GPU, by NVML index.
        migs: `MIG-...` of each slice -> NVML index of its GPU.
    """
    if value is None:
        return Selection(tuple(Pick(i) for i in range(len(uuids))))
    picks: list[Pick] = []
    try:
        for entry in (part.strip() for part in value.split(",")) if value.strip() else ():
            picks.append(_checked(_pick(entry, uuids, migs), entry, picks))
    except _StopError as stop:
        return Selection(tuple(picks), str(stop))
    return Selection(tuple(picks))


def _checked(pick: Pick, entry: str, before: Sequence[Pick]) -> Pick:
    if pick in before:
        raise _StopError(f"{entry!r} is there twice")
    if before and (pick.mig or before[0].mig):
        raise _StopError(f"{entry!r} follows, but CUDA shows one MIG device and nothing beside it")
    return pick


def _pick(entry: str, uuids: Sequence[str], migs: Mapping[str, int]) -> Pick:
    if entry.startswith("MIG-"):
        return _mig(entry, uuids, migs)
    if entry.startswith("GPU-"):
        return Pick(_only(entry, dict(zip(uuids, range(len(uuids)), strict=True))))
    if entry.isdecimal() and int(entry) < len(uuids):
        return Pick(int(entry))
    raise _StopError(f"{entry!r} is no device here ({len(uuids)} found)")


def _mig(entry: str, uuids: Sequence[str], migs: Mapping[str, int]) -> Pick:
    old = _OLD_MIG.fullmatch(entry)  # drivers before 470: MIG-GPU-<uuid>/<gpu instance>/<compute instance>
    if old:
        return Pick(_only(old[1], dict(zip(uuids, range(len(uuids)), strict=True))), entry)
    return Pick(_only(entry, migs), entry)


def _only(prefix: str, names: Mapping[str, int]) -> int:
    indices = [index for name, index in names.items() if name.startswith(prefix)]
    if len(indices) != 1:
        raise _StopError(f"{prefix!r} names {len(indices)} devices")
    return indices[0]
