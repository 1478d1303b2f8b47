"""Compare a counter with integrated power over the time in which both are known, however short the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from torchwatt.attribution.metered_curve import (
    CROSS_CHECK_REL,
    MeteredCurve,
    build_counter_curve,
    select_series,
    slow_update_interval_s,
)
from torchwatt.attribution.observed_windows import subtract_gaps
from torchwatt.attribution.power_integral import PowerIntegral, integrate_power
from torchwatt.attribution.unsampled_phases import averaging_window_s, find_power_updates, sampling_uncertainty_j
from torchwatt.core.energy_curve import interpolate
from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Event, Meter, Recording, Series
from torchwatt.core.units import NS_PER_S, Z90

UNCHECKED_PREFIX = "unchecked"  # prefix of notes on why a meter's band rests on its kind only
# A comparison with a resolution worse than this part of the joules does not check a band of 5 %.
MAX_RESOLUTION_REL = 0.05
SLOWEST_UPDATE_S = 2.0
MIN_POWER_CHANGES = 3  # fewer changes give no usable spread of power


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """Joules of the same interval by both methods, and the resolution of their ratio (90 %, relative)."""

    counter_j: float
    power_j: float
    seconds: float
    resolution: float
    end_ns: int

    @property
    def off(self) -> float:
        """Return the difference of the two, as a part of the larger one."""
        return abs(self.counter_j - self.power_j) / max(self.counter_j, self.power_j, 1e-12)

    @property
    def disputed(self) -> bool:
        """Return whether they differ more than two good meters with these readings would."""
        return self.off > CROSS_CHECK_REL + self.resolution


def check_counter(
    meter: Meter, recording: Recording, window: tuple[int, int] | None = None
) -> tuple[Meter, list[Event]]:
    """Return a meter whose band includes the other method's result, or that is marked unchecked; and events.

    A meter without a counter, or a model, is returned unchanged.

    Args:
        meter: Any.
        recording: Its readings.
        window: The run: where the counter is too slow for it, integrated power is booked.
    """
    counter = select_series(recording, meter, "counter")
    if counter is None or meter.provenance != "measured":
        return meter, []
    comparison = compare_counter(meter, recording, counter)
    if isinstance(comparison, str):
        return _add_note(meter, f"{UNCHECKED_PREFIX}: {comparison}"), []
    slow = window is not None and bool(slow_update_interval_s(counter, *window))
    if comparison.disputed:
        return _widen_band(meter, comparison, slow=slow), [_disagreement_event(meter, comparison, slow=slow)]
    if comparison.off > CROSS_CHECK_REL:
        meter = _widen_band(meter, comparison, slow=slow)
    if comparison.resolution > MAX_RESOLUTION_REL:
        text = f"{comparison.seconds:.2g} s of counter and power agree to {comparison.off:.0%}, with a resolution of ±"
        return _add_note(meter, f"{UNCHECKED_PREFIX}: {text}{min(comparison.resolution, 1.0):.0%}"), []
    return meter, []


def compare_counter(meter: Meter, recording: Recording, counter: Series) -> CrossCheck | str:
    """Compare a counter with integrated power from its first change to its last; or return why that is impossible.

    A counter dates its joules only where it changes: between two changes both methods cover the same time.
    """
    power = select_series(recording, meter, "power")
    if power is None:
        return "there is no second meter beside the counter"
    integral = integrate_power(power)
    checked = _build_checked_curve(meter, counter, power, integral)
    changed = np.flatnonzero(np.diff(counter.raw) != 0) + 1
    if checked is None or len(changed) < 2:
        return "the counter changed less than twice"
    ends = np.array([[*counter.t_ns[changed[[0, -1]]]]])
    ends = np.clip(
        ends, max(checked.curve.start_ns, int(power.t_ns[0])), min(checked.curve.end_ns, int(power.t_ns[-1]))
    )
    common = subtract_gaps(ends, (*integral[2], *checked.curve.silent, *checked.leaning))
    common = common[np.diff(common, axis=1)[:, 0] > 0]
    if not len(common):
        return "counter and power were never read at the same time"
    seconds = float(np.diff(common, axis=1).sum()) / NS_PER_S
    counter_j = float(np.diff(checked.curve.at(common), axis=1).sum())
    power_j = float(np.diff(interpolate(common, *integral[:2]), axis=1).sum())
    every = find_power_updates(power)
    longest_s = averaging_window_s(power, meter.model, every.period_s)[1]
    sampled_j = Z90 * sampling_uncertainty_j(power, every, int(common[0, 0]), int(common[-1, 1]), longest_s)
    dated = float(np.median(np.diff(counter.t_ns))) / NS_PER_S / seconds
    changes = int((np.diff(power.between(int(common[0, 0]), int(common[-1, 1])).raw) != 0).sum())
    least = 0 if seconds < SLOWEST_UPDATE_S else 1  # a sensor that is constant for longer is not a slow one
    few = 1.0 / (changes + 2) if least <= changes < MIN_POWER_CHANGES else 0.0
    resolution = sampled_j / power_j + dated + few if power_j > 0 else 1.0
    return CrossCheck(counter_j, power_j, seconds, resolution, int(common[-1, 1]))


def _build_checked_curve(meter: Meter, counter: Series, power: Series, integral: PowerIntegral) -> MeteredCurve | None:
    try:
        return build_counter_curve(meter, counter, power, integral)
    except SensorError:
        return None


def _add_note(meter: Meter, note: str) -> Meter:
    return replace(meter, notes=(*meter.notes, note))


def _widen_band(meter: Meter, comparison: CrossCheck, *, slow: bool) -> Meter:
    """Widen the band to the other method's result, and by its resolution beyond."""
    booked_j, other_j = (
        (comparison.power_j, comparison.counter_j) if slow else (comparison.counter_j, comparison.power_j)
    )
    if booked_j <= 0:
        return _add_note(meter, f"{UNCHECKED_PREFIX}: it gives no joules, the other method {other_j:.4g} J")
    lo, hi = meter.accuracy_rel or (0.0, 0.0)
    ratio, more = other_j / booked_j, 1.0 + min(comparison.resolution, 1.0)
    band = (min(lo, ratio / more * (1 + lo) - 1), max(hi, ratio * more * (1 + hi) - 1))
    other_method = "the counter" if slow else "integrated power"
    source = f"{meter.accuracy_source}; widened to {other_method}, which disagrees"
    return replace(meter, accuracy_rel=band, accuracy_source=source)


def _disagreement_event(meter: Meter, comparison: CrossCheck, *, slow: bool) -> Event:
    """Return an event on the disagreement; a GPU's counter with the higher value may cover more than the GPU."""
    watts = f"{comparison.counter_j / comparison.seconds:.4g} W"
    power_text = f"{comparison.power_j / comparison.seconds:.4g} W over {comparison.seconds:.3g} s"
    if meter.domain.kind == "gpu" and not slow and comparison.counter_j > comparison.power_j:
        message = (
            f"the energy counter says {watts}, power at scope GPU {power_text}, and the power of a module cannot be "
            "read: the counter is booked, it may cover more than the GPU, and its interval reaches to the power"
        )
        return Event(comparison.end_ns, "warning", "SCOPE_UNKNOWN", str(meter.domain), message)
    message = (
        f"the energy counter says {watts}, integrated power {power_text}: {'power' if slow else 'the counter'} is "
        f"booked, and its interval reaches to the {'counter' if slow else 'power'}"
    )
    return Event(comparison.end_ns, "warning", "CROSS_CHECK", str(meter.domain), message)
