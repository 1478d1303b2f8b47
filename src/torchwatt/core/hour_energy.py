"""Energy by hour (UTC), so that hourly carbon intensities can be applied later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isclose

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.ledger import Ledger
from torchwatt.core.report import Report
from torchwatt.core.terms import Provenance
from torchwatt.core.units import NS_PER_S

NS_PER_HOUR = 3600 * NS_PER_S
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class HourEnergy:
    """Energy of one domain within one hour; the hours of a domain add up to its ledger."""

    hour: int  # whole hours since 1970-01-01T00:00Z
    device_id: str
    energy_j: float
    provenance: Provenance

    @property
    def hour_utc(self) -> datetime:
        """Return the start of the hour."""
        return hour_start(self.hour)


def hour_start(hour: int) -> datetime:
    """Return the start of an hour, UTC."""
    return _EPOCH + timedelta(hours=hour)


def hour_of(instant: datetime) -> int:
    """Return the hour that holds an instant."""
    return (instant - _EPOCH) // timedelta(hours=1)


def hour_energies(report: Report) -> tuple[HourEnergy, ...]:
    """Split the energy of each counted domain at the hours of UTC; skip domains whose curve and ledger differ."""
    curves = {str(curve.domain): curve for curve in report.curves}
    return tuple(item for x in report.counted for item in _ledger_hours(report, x, curves.get(str(x.domain))))


def _ledger_hours(report: Report, ledger: Ledger, curve: EnergyCurve | None) -> Iterator[HourEnergy]:
    """Yield differences of the cumulative curve, which add up to the total."""
    name, offset_ns = str(ledger.domain), report.start_unix_ns - report.start_ns
    if report.start_unix_ns // NS_PER_HOUR == (report.end_ns + offset_ns) // NS_PER_HOUR:
        yield HourEnergy(report.start_unix_ns // NS_PER_HOUR, name, ledger.energy_j, ledger.provenance)
        return
    if curve is None or not isclose(curve.total_j, ledger.energy_j, rel_tol=1e-9, abs_tol=1e-9):
        return
    last_hour = (curve.end_ns + offset_ns - 1) // NS_PER_HOUR
    for hour in range((curve.start_ns + offset_ns) // NS_PER_HOUR, last_hour + 1):
        start_ns = hour * NS_PER_HOUR - offset_ns
        yield HourEnergy(hour, name, curve.between(start_ns, start_ns + NS_PER_HOUR), ledger.provenance)
