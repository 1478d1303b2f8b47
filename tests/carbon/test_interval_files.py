"""A user's own file of a grid over time: quarters, half hours and hours, days of 23 and 25 hours, gaps."""

from datetime import UTC, datetime, timedelta

import pytest

from torchwatt.carbon import CarbonOptions, PricedSubject, RunUsage
from torchwatt.carbon.pricing import price_run
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.errors import FactorError
from torchwatt.core.units import hour_of, hour_start

KWH_J = 3.6e6


@pytest.fixture
def write(tmp_path):
    def write_(*lines, name="grid.csv"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write_


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def used(start, *kwh):
    """Return a run that used so many kWh in each hour from one on."""
    hours = {hour_of(utc(start)) + i: value * KWH_J for i, value in enumerate(kwh)}
    total_j = sum(hours.values())
    subject = PricedSubject("run", total_j, "measured", total_j * 0.9, total_j * 1.1, hours)
    return RunUsage((subject,), 3600.0 * len(kwh), tuple(hours))


def priced(path, run, **asked):
    return price_run(run, make_plan(CarbonOptions(factors=path, **asked), hour_start(min(run.hours))))


def grams(path, run):
    (impact,) = priced(path, run).impacts
    return impact.value


def rows(first, minutes, values, offset=""):
    start = datetime.fromisoformat(first)
    return [f"{start + i * timedelta(minutes=minutes):%Y-%m-%dT%H:%M}{offset},{v}" for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("minutes", "values"), [(15, [10, 20, 30, 40, 100, 100, 100, 100]), (30, [20, 30, 100, 100]), (60, [25, 100])]
)
def test_quarters_half_hours_and_hours_are_the_mean_of_their_hour(write, minutes, values):
    path = write("start,g_per_kwh", *rows("2026-06-01T12:00", minutes, values, "Z"))
    assert grams(path, used("2026-06-01T12:00", 1, 2)) == pytest.approx(25 + 2 * 100)


def test_the_hour_says_what_it_was_made_of_and_how_far_its_parts_differ(write):
    path = write(
        "start,g_per_kwh,zone,source_url",
        *(f"{r},FR,https://x.org" for r in rows("2026-06-01T12:00", 15, [10, 20, 30, 60], "Z")),
    )
    (factor,) = priced(path, used("2026-06-01T12:00", 1)).factors
    assert (factor.value, factor.lo, factor.hi) == (30.0, 10.0, 60.0)
    assert (factor.valid_from, factor.valid_to) == (utc("2026-06-01T12:00"), utc("2026-06-01T13:00"))
    assert (factor.provenance, factor.source_name, factor.temporal_resolution) == ("sourced", "grid.csv", "hour")
    assert "mean of 4 values" in factor.coverage_note


def test_the_day_on_which_clocks_go_forward_has_23_hours(write):
    hours = [f"2026-03-29 {hour:02}:00,{hour}" for hour in range(24) if hour != 2]
    path = write("start (Europe/Warsaw),g_per_kwh", *hours)
    # 01:00 there is 00:00 UTC, and 03:00 is 01:00 UTC.
    assert grams(path, used("2026-03-29T00:00", 1, 10)) == pytest.approx(1 * 1 + 10 * 3)
    with pytest.raises(FactorError, match="put forward"):
        priced(
            write("start (Europe/Warsaw),g_per_kwh", "2026-03-29 01:00,1", "2026-03-29 02:00,2"),
            used("2026-03-29T00:00", 1),
        )
    # Portals that list 24 rows on that day leave the one empty.
    listed = write(
        "start (Europe/Warsaw),g_per_kwh", *(f"2026-03-29 {h:02}:00,{'' if h == 2 else h}" for h in range(24))
    )
    assert grams(listed, used("2026-03-29T00:00", 1, 10)) == pytest.approx(1 * 1 + 10 * 3)


@pytest.mark.parametrize("minutes", [15, 30, 60])
def test_the_day_on_which_clocks_go_back_has_25_hours(write, minutes):
    parts = [f"{part:02}" for part in range(0, 60, minutes)]
    clock = [0, 1, 2, 2, 3, 4]
    lines = [f"2026-10-25 {hour:02}:{part},{value}" for value, hour in enumerate(clock) for part in parts]
    path = write("start (Europe/Warsaw),g_per_kwh", *lines)
    # 02:00 is there at 00:00 and at 01:00 UTC.
    assert grams(path, used("2026-10-24T23:00", 1, 10, 100, 1000)) == pytest.approx(1 * 1 + 10 * 2 + 100 * 3 + 1000 * 4)


def test_an_hour_that_was_listed_once_for_twice_is_a_gap_and_told(write):
    path = write("start (Europe/Warsaw),g_per_kwh", *(f"2026-10-25 {hour:02}:00,{hour}" for hour in range(6)))
    found = priced(path, used("2026-10-25T00:00", 1, 1))
    assert found.impacts == ()
    (note,) = found.notes
    assert (note.code, "2026-10-25T01:00Z" in note.message) == ("FACTOR_MISSING", True)


def test_a_file_that_begins_in_the_hour_that_is_there_twice_is_refused(write):
    with pytest.raises(FactorError, match="there twice"):
        priced(
            write("start (Europe/Warsaw),g_per_kwh", "2026-10-25 02:00,1", "2026-10-25 03:00,1"),
            used("2026-10-25T01:00", 1),
        )
    path = write("start,g_per_kwh", "2026-10-25T02:00+02:00,1", "2026-10-25T02:00+01:00,5")
    assert grams(path, used("2026-10-25T00:00", 1, 1)) == pytest.approx(6)


def test_hours_of_a_zone_that_is_half_an_hour_off_are_put_together(write):
    path = write("start (Asia/Kolkata),g_per_kwh", *rows("2026-06-01T05:00", 60, [600, 700, 800]))
    # 05:00 there is 23:30 UTC of the day before: midnight UTC has half of the first and half of the second.
    assert grams(path, used("2026-06-01T00:00", 1)) == pytest.approx(650)


def test_a_gap_is_told_with_its_hours_and_the_next_level_is_used(write):
    path = write(
        "start,g_per_kwh,zone",
        *(f"2026-06-01T{h}Z,40,FR" for h in ("12:00", "12:15", "12:30", "13:00", "13:15", "13:30", "13:45")),
    )
    found = priced(path, used("2026-06-01T12:00", 1, 1), region="FRA")
    (note,) = [note for note in found.notes if note.code == "FACTOR_FALLBACK"]
    assert "1 of 2 hours missing: 2026-06-01T12:00Z" in note.message
    assert "2026-06-01T12:00Z" in found.factors[0].fallback_from


def test_a_file_without_a_whole_hour_of_the_run_names_that_hour(write):
    path = write("start,g_per_kwh,zone", *(f"2026-06-01T{h}Z,40,FR" for h in ("12:00", "12:15", "12:45", "13:00")))
    found = priced(path, used("2026-06-01T12:00", 1))
    assert not found.impacts
    (note,) = [note for note in found.notes if note.code == "FACTOR_MISSING"]
    assert "1 of 1 hours missing: 2026-06-01T12:00Z" in note.message


def test_rows_of_a_file_of_factors_may_be_quarters_too(write):
    head = "kind,value,unit,source_name,temporal_resolution,valid_from,valid_to"
    row = "grid_gwp,{},g{{CO2e}}/kW.h,me,hour,2026-06-01T12:{:02}:00Z,2026-06-01T{}:00Z"
    lines = [row.format(10 * i, 15 * i, ("12:15", "12:30", "12:45", "13:00")[i]) for i in range(4)]
    assert grams(write(head, *lines), used("2026-06-01T12:00", 1)) == pytest.approx(15)
    with pytest.raises(FactorError, match="two numbers"):
        priced(write(head, *lines, lines[1].replace("10,", "11,")), used("2026-06-01T12:00", 1))


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["start,g_per_kwh", "2026-06-01T12:00,1", "2026-06-01T13:00,1"], "no time zone"),
        (["start (Mars/Base),g_per_kwh", "2026-06-01 12:00,1", "2026-06-01 13:00,1"], "no time zone"),
        (["start,g_per_kwh", "2026-06-01T12:00Z,1", "2026-06-01T12:05Z,1"], "15, 30 or 60"),
        (["start,g_per_kwh", "2026-06-01T12:00Z,1", "2026-06-02T12:00Z,1"], "15, 30 or 60"),
        (["start,g_per_kwh", "2026-06-01T12:07Z,1", "2026-06-01T12:22Z,1"], "whole quarters"),
        (["start,g_per_kwh", "2026-06-01T12:00Z,1"], "15, 30 or 60"),
        (["start,g_per_kwh", "2026-06-01T12:00Z,1", "2026-06-01T12:00Z,2"], "twice"),
        (["start,g_per_kwh", "2026-06-01T12:00Z,-1", "2026-06-01T13:00Z,2"], "carbon intensity"),
        (["start,g_per_kwh", "2026-06-01T12:00Z,1;5", "2026-06-01T13:00Z,2"], "no number"),
        (["start,g_per_kwh,colour", "2026-06-01T12:00Z,1,red"], "unknown column 'colour'"),
        (["start,g_per_kwh,zone", "2026-06-01T12:00Z,1"], "cells"),
        (["start,g_per_kwh", "noon,1"], "no time"),
        (["start,g_per_kwh,basis", "2026-06-01T12:00Z,1,all", "2026-06-01T13:00Z,1,all"], "not known"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_right_is_refused_with_its_reason(write, lines, complaint):
    with pytest.raises(FactorError, match=complaint):
        priced(write(*lines), used("2026-06-01T12:00", 1))
