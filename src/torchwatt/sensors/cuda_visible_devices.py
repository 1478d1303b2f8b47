"""Parses CUDA_VISIBLE_DEVICES by CUDA's rules; opens no device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/\d+/\d+")


@dataclass(frozen=True, slots=True)
class VisibleDevice:
    """One visible device: its NVML index and, for a slice of a GPU, the name that selected it."""

    index: int
    mig: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceSelection:
    """The visible devices in CUDA's order, and the reason if an invalid entry ended the list."""

    picks: tuple[VisibleDevice, ...]
    stopped: str = ""


class _InvalidEntryError(ValueError):
    """An entry that CUDA does not accept; it and all following entries are invisible."""


def select_devices(value: str | None, uuids: Sequence[str], migs: Mapping[str, int]) -> DeviceSelection:
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
        return DeviceSelection(tuple(VisibleDevice(i) for i in range(len(uuids))))
    picks: list[VisibleDevice] = []
    try:
        for entry in (part.strip() for part in value.split(",")) if value.strip() else ():
            picks.append(_check_entry(_parse_entry(entry, uuids, migs), entry, picks))
    except _InvalidEntryError as stop:
        return DeviceSelection(tuple(picks), str(stop))
    return DeviceSelection(tuple(picks))


def _check_entry(pick: VisibleDevice, entry: str, before: Sequence[VisibleDevice]) -> VisibleDevice:
    if pick in before:
        raise _InvalidEntryError(f"{entry!r} is there twice")
    if before and (pick.mig or before[0].mig):
        raise _InvalidEntryError(f"{entry!r} follows, but CUDA shows one MIG device and nothing beside it")
    return pick


def _parse_entry(entry: str, uuids: Sequence[str], migs: Mapping[str, int]) -> VisibleDevice:
    if entry.startswith("MIG-"):
        return _parse_mig(entry, uuids, migs)
    if entry.startswith("GPU-"):
        return VisibleDevice(_unique_match(entry, dict(zip(uuids, range(len(uuids)), strict=True))))
    if entry.isdecimal() and int(entry) < len(uuids):
        return VisibleDevice(int(entry))
    raise _InvalidEntryError(f"{entry!r} is no device here ({len(uuids)} found)")


def _parse_mig(entry: str, uuids: Sequence[str], migs: Mapping[str, int]) -> VisibleDevice:
    old = _OLD_MIG.fullmatch(entry)  # drivers before 470: MIG-GPU-<uuid>/<gpu instance>/<compute instance>
    if old:
        return VisibleDevice(_unique_match(old[1], dict(zip(uuids, range(len(uuids)), strict=True))), entry)
    return VisibleDevice(_unique_match(entry, migs), entry)


def _unique_match(prefix: str, names: Mapping[str, int]) -> int:
    indices = [index for name, index in names.items() if name.startswith(prefix)]
    if len(indices) != 1:
        raise _InvalidEntryError(f"{prefix!r} names {len(indices)} devices")
    return indices[0]
