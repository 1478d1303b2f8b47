"""Every unit conversion of the project, and the quantile of its intervals; exact constants."""

from datetime import UTC, datetime, timedelta

J_PER_KWH = 3.6e6
NS_PER_S = 1_000_000_000
NS_PER_HOUR = 3600 * NS_PER_S
Z90 = 1.6448536269514722  # half width of a two-sided 90 % interval, in standard deviations
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def kwh_from_j(energy_j: float) -> float:
    """Convert joules to kilowatt-hours."""
    return energy_j / J_PER_KWH


def s_from_ns(duration_ns: float) -> float:
    """Convert nanoseconds to seconds."""
    return duration_ns / NS_PER_S


def ns_from_s(duration_s: float) -> int:
    """Convert seconds to whole nanoseconds."""
    return round(duration_s * NS_PER_S)


def hour_start(hour: int) -> datetime:
    """Return the start of an hour, UTC."""
    return _EPOCH + timedelta(hours=hour)


def hour_of(instant: datetime) -> int:
    """Return the hour that holds an instant."""
    return (instant - _EPOCH) // timedelta(hours=1)
