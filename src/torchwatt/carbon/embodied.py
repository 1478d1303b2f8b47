"""Embodied figures of devices, as the user gives them (M of the SCI, ISO/IEC 21031:2024).

M = TE * (TiR / EL) * (RR / ToR): embodied total, times reserved time over expected life, times the share of the device
that was reserved. The user or a source states all of them; there are no defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor
from torchwatt.core.terms import kind_of

S_PER_YEAR = 31_557_600  # UCUM's "a", the Julian year of 365.25 days
_KINDS = ("embodied_gwp", "embodied_adpe", "embodied_pe")


@dataclass(frozen=True, slots=True)
class Embodied:
    """Figures of one kind of device (`gpu`) or of one device (`gpu:0`).

    `totals` are by kind of factor, `lifetime` is in years, `share` is 0 to 1.
    """

    device: str
    lifetime: Factor
    share: Factor
    totals: Mapping[str, Factor] = field(default_factory=dict)


def embodied(lines: Iterable[tuple[str, Factor]]) -> tuple[Embodied, ...]:
    """Group (device, factor) pairs by device.

    Raises:
        FactorError: A total has no lifetime or no share, or a factor is given twice.
    """
    by_device: dict[str, dict[str, Factor]] = {}
    for device, factor in lines:
        if factor.kind not in {*_KINDS, "lifetime", "share"}:
            continue
        if not device:
            raise FactorError(f"{factor.kind}: the column `device` must name a device, such as gpu or gpu:0")
        if by_device.setdefault(device, {}).setdefault(factor.kind, factor) is not factor:
            raise FactorError(f"{device}: {factor.kind} is given twice")
    return tuple(_one(device, factors) for device, factors in sorted(by_device.items()))


def _one(device: str, factors: Mapping[str, Factor]) -> Embodied:
    totals = {kind: factors[kind] for kind in _KINDS if kind in factors}
    missing = [kind for kind in ("lifetime", "share") if kind not in factors]
    if not totals or missing:
        raise FactorError(
            f"{device}: embodied emissions need a total ({', '.join(_KINDS)}), a lifetime in years and the share of "
            f"the device that was reserved; missing: {', '.join(missing) or 'the total'}"
        )
    return Embodied(device, factors["lifetime"], factors["share"], totals)


def for_device(devices: Iterable[Embodied], device_id: str) -> Embodied | None:
    """Return the figures of a device, else those of its kind, else None."""
    by_name = {item.device: item for item in devices}
    return by_name.get(device_id) or by_name.get(kind_of(device_id))
