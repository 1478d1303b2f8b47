"""Joules by the hours of the world's clock, so that a grid that changes by the hour can be applied later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from torchwatt.core.curve import EnergyCurve
from torchwatt.core.report import Report
from torchwatt.core.terms import Provenance
from torchwatt.core.units import NS_PER_S

NS_PER_HOUR = 3600 * NS_PER_S
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class HourEnergy:
    """What one domain used within one hour; the hours of a domain add up to its ledger."""

    hour: int  # whole hours since 1970-01-01T00:00Z
    device_id: str
    energy_j: float
    provenance: Provenance

    @property
    def hour_utc(self) -> datetime:
        """Return the start of the hour."""
        return hour_start(self.hour)


def hour_start(hour: int) -> datetime:
    """Return the instant at which an hour begins."""
    return _EPOCH + timedelta(hours=hour)


def hour_of(instant: datetime) -> int:
    """Return the hour that holds an instant."""
    return (instant - _EPOCH) // timedelta(hours=1)


def hour_energies(report: Report) -> tuple[HourEnergy, ...]:
    """Cut the curve of every counted domain at the hours of UTC."""
    counted = {str(ledger.domain) for ledger in report.ledgers}
    curves = [curve for curve in report.curves if str(curve.domain) in counted]
    return tuple(item for curve in curves for item in _hours(curve, report.start_unix_ns - report.start_ns))


def _hours(curve: EnergyCurve, unix_minus_monotonic_ns: int) -> Iterator[HourEnergy]:
    """Take differences of the cumulative curve, so that the hours add up to it whatever the cuts."""
    first = (curve.start_ns + unix_minus_monotonic_ns) // NS_PER_HOUR
    last = (curve.end_ns + unix_minus_monotonic_ns - 1) // NS_PER_HOUR
    inner = [hour * NS_PER_HOUR - unix_minus_monotonic_ns for hour in range(first + 1, last + 1)]
    cuts = [curve.start_ns, *inner, curve.end_ns]
    for hour, (start_ns, end_ns) in enumerate(pairwise(cuts), first):
        yield HourEnergy(hour, str(curve.domain), curve.between(start_ns, end_ns), curve.provenance)
