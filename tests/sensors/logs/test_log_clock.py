"""Times of logs in all spellings, to the nanosecond where the text has them."""

import pytest

from torchwatt.core.errors import ConfigError
from torchwatt.sensors.logs.log_clock import LogClock, parse_zone

NS = 1_700_000_000_250_000_000  # Tuesday, 14 November 2023, 22:13:20.25 UTC
WHOLE = 1_700_000_000_000_000_000
HOUR = 3_600 * 10**9


@pytest.mark.parametrize(
    ("cell", "unit", "t_ns"),
    [
        ("1700000000250000000", "ns", NS),
        ("1700000000250000", "us", NS),
        ("1700000000250", "ms", NS),
        ("1700000000.25", "s", NS),
        ("1700000000250000000", "", NS),
        ("1700000000250000", "", NS),
        ("1700000000250", "", NS),
        ("1700000000.25", "", NS),
        ("1700000000,25", "", NS),
        ("1.70000000025e9", "s", NS),
        ("1700000000.123456789", "", WHOLE + 123_456_789),
        ("2023/11/14 22:13:20.250", "", NS),
        ("2023/11/14 22:13:20", "", WHOLE),
        ("2023-11-14T22:13:20.250Z", "", NS),
        ("2023-11-14T22:13:20.250123456Z", "", NS + 123_456),
        ("2023-11-14T23:13:20.25+01:00", "", NS),
        ("2023-11-14 17:13:20.25 -0500", "", NS),
        ("2023-11-14 22:13:20,250", "", NS),
        ("2023-11-14 22:13:20.250 UTC", "", NS),
        ("2023-11-14_22:13:20.250", "", NS),
        ("20231114 22:13:20", "", WHOLE),
        ("20231114T221320Z", "", WHOLE),
        ("14.11.2023 22:13:20,25", "", NS),
        ("11/14/2023 10:13:20 PM", "", WHOLE),
        ("14/11/2023 22:13:20", "", WHOLE),
        ("Tue Nov 14 22:13:20 2023", "", WHOLE),
        ("Tue Nov 14 22:13:20 UTC 2023", "", WHOLE),
        ("Tue, 14 Nov 2023 22:13:20 GMT", "", WHOLE),
        ("Nov 14, 2023 22:13:20", "", WHOLE),
        ("14/Nov/2023:22:13:20 +0000", "", WHOLE),
        ('"2023-11-14 22:13:20"', "", WHOLE),
    ],
)
def test_a_time_is_read_to_the_nanosecond(cell, unit, t_ns):
    assert LogClock().read(cell, unit) == t_ns


@pytest.mark.parametrize("cell", ["", "soon", "2023-13-14 22:13:20", "2023-11-14 25:13:20", "1e40", "9" * 300, "nan"])
def test_what_is_no_time_is_none(cell):
    assert LogClock().read(cell, "") is None


def test_a_time_of_day_goes_on_after_midnight():
    clock = LogClock()
    assert [clock.read(cell, "") for cell in ("23:59:59.5", "00:00:00.5", "00:00:01")] == [
        86_399_500_000_000, 86_400_500_000_000, 86_401_000_000_000,
    ]  # fmt: skip
    assert clock.dateless


def test_days_and_months_that_may_be_swapped_are_said():
    clock = LogClock()
    clock.read("11/12/2023 22:13:20", "")
    assert clock.doubtful == "11/12/2023"


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_at_the_end_of_summer_time_the_clock_goes_on(zone):
    """In Berlin, 29 October 2023 had the hour from two to three twice."""
    clock = LogClock(parse_zone(zone))
    cells = [f"2023/10/29 {time}.000" for time in ("02:59:58", "02:59:59", "02:00:00", "02:00:01", "03:00:00")]
    times = [clock.read(cell, "") for cell in cells]
    first = 1_698_548_398 * 10**9  # 02:59:58 as UTC
    first -= 2 * HOUR if zone else 0
    assert [t - first for t in times] == [0, 10**9, 2 * 10**9, 3 * 10**9, 2 * 10**9 + HOUR]
    assert clock.set_back == (0 if zone else 1)


def test_at_the_begin_of_summer_time_a_zone_closes_the_gap():
    """In Berlin, 26 March 2023 had no hour from two to three."""
    clock = LogClock(parse_zone("Europe/Berlin"))
    before, after = (clock.read(f"2023-03-26 {time}", "") for time in ("01:59:59", "03:00:00"))
    assert after - before == 10**9


def test_lines_an_hour_apart_on_another_day_stay_where_they_are():
    clock = LogClock()
    later, earlier = (clock.read(f"2023-11-14 {hour}:00:00", "") for hour in ("22", "21"))
    assert later - earlier == HOUR


def test_a_zone_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match="no time zone 'Nowhere/City'"):
        parse_zone("Nowhere/City")
