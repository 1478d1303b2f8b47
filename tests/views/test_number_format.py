from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.views import number_format
from torchwatt.views.number_format import (
    DASH,
    format_count,
    format_energy,
    format_interval,
    format_mass,
    format_power,
    format_share,
    format_time,
    keep_units,
)

FORMATS = (format_energy, format_power, format_mass, format_time, format_share, format_count, number_format.format_wh)


@pytest.mark.parametrize(
    ("joules", "text"),
    [
        (0, "0 J"),
        (0.0, "0 J"),
        (1.2345, "1.23 J"),
        (12.345, "12.3 J"),
        (123.45, "123 J"),
        (999.6, "1.00 kJ"),
        (999_960, "1.00 MJ"),
        (1234.5, "1.23 kJ"),
        (0.0012345, "1.23 mJ"),
        (1.5e-6, "1.50 µJ"),
        (1e-12, "0.00 nJ"),
        (3.6e6, "1.00 kWh"),
        (4.4e7, "12.2 kWh"),
        (-12.3, "-12.3 J"),
    ],
)
def test_energy(joules, text):
    assert format_energy(joules) == text


def test_other_units():
    assert format_power(1234) == "1.23 kW"
    assert [format_mass(g) for g in (0.138, 1200, 3.4e6)] == ["138 mg", "1.20 kg", "3.40 t"]
    assert [format_time(s) for s in (2e-4, 24, 599, 600, 9000)] == ["200 µs", "24.0 s", "599 s", "10.0 min", "2.50 h"]
    assert format_share(0.1234) == "12.3 %"
    assert [format_count(n) for n in (40, 1_310_720, 0.5)] == ["40", "1.31 M", "0.50"]


def test_intervals_share_a_unit():
    assert format_interval(1200, 1260) == "1.20 to 1.26 kJ"
    assert format_interval(0.9e3, 1.1e3) == "0.90 to 1.10 kJ"
    assert format_interval(None, 1.0) == DASH


@pytest.mark.parametrize("value", [None, nan, inf, -inf])
@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_not_known_is_a_dash(format_, value):
    assert format_(value) == DASH


@given(st.floats(1e-9, 1e14))
def test_three_figures_are_kept(value):
    shown, unit = format_power(value).split(" ")
    scale = {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit[:-1]]
    assert float(shown) * scale == pytest.approx(value, rel=0.0051)
    assert len(shown.replace(".", "").lstrip("0")) <= 3


def test_a_number_stays_on_one_line_with_its_unit_and_words_wrap():
    text = "38.1 J (0 to 182 mJ) in 21 s, 7 %; 3 min, 61 °C, 6 steps of 8 hosts"
    assert keep_units(text).replace("\N{NO-BREAK SPACE}", "~") == (
        "38.1~J (0 to 182~mJ) in 21~s, 7~%; 3~min, 61~°C, 6 steps of 8 hosts"
    )
