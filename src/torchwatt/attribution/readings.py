"""Select the power readings of a device that the layers are fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchwatt.attribution.power import later, usable
from torchwatt.attribution.publications import publications
from torchwatt.core.meter import Series
from torchwatt.core.units import NS_PER_S

# A driver's ring that was not read for a part of the run has no information on the layers that ran then.
LEAST_HEARD = 0.9
GAP_PERIODS = 10
# A ring is read once a second: during a run its newest samples, up to half of it, are not available yet.
TAIL_NS = 2 * NS_PER_S
LEAST_YET = 0.5


def finest(powers: Sequence[Series], start_ns: int, end_ns: int) -> tuple[Series | None, str]:
    """Return the readings to fit layers to, and why they are not the driver's own samples where there are any.

    The driver's samples are preferred, since they are the densest and have known times; then `nvml_power_instant`,
    whose window is shortest.

    Args:
        powers: All powers of one device.
        start_ns: Start of the run.
        end_ns: Its end.
    """
    usable_powers = [power for power in map(_clean, powers) if len(power) >= 2]
    usable_powers.sort(key=lambda power: power.channel.sensor != "nvml_power_instant")
    stamped = [power for power in usable_powers if power.channel.stamped]
    polled = [power for power in usable_powers if not power.channel.stamped]
    why = _why_not(stamped[0], start_ns, end_ns) if stamped and polled else ""
    ordered = [*polled, *stamped] if why else [*stamped, *polled]
    return (ordered[0] if ordered else None), why


def _clean(power: Series) -> Series:
    readings = usable(power)
    keep = later(readings.t_ns)
    return Series(readings.channel, readings.t_ns[keep], readings.raw[keep], readings.late_ns[keep])


def _why_not(samples: Series, start_ns: int, end_ns: int) -> str:
    heard, later_on = _heard(samples, start_ns, end_ns)
    if heard < LEAST_YET or heard + later_on < LEAST_HEARD:
        return f"they cover {heard:.0%} of the run"
    return "" if publications(samples) is not None else "their value hardly changes"


def _heard(samples: Series, start_ns: int, end_ns: int) -> tuple[float, float]:
    """Return the share of a run without gaps in the samples, and the share that may be read later."""
    instants_ns = samples.between(start_ns, end_ns).t_ns
    distances_ns = np.diff(np.concatenate(([start_ns], instants_ns, [end_ns])))
    silent = np.where(distances_ns > GAP_PERIODS * samples.channel.period_ns, distances_ns, 0)
    whole_ns = max(end_ns - start_ns, 1)
    return 1.0 - float(silent.sum()) / whole_ns, min(float(silent[-1]), TAIL_NS) / whole_ns
