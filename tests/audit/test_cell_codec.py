import csv
from io import StringIO
from math import inf, nan

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.reports import HOSTILE
from torchwatt.audit.cell_codec import (
    LARGEST_INTEGER,
    LARGEST_NUMBER,
    escape,
    from_cell,
    to_cell,
    unescape,
    utc_from_unix_ns,
)
from torchwatt.audit.schema import Column
from torchwatt.core.errors import BundleError

TEXT = Column("text", "string", "", required=False, description="")
NUMBER = Column("number", "number", "J", required=False, description="")
INTEGER = Column("integer", "integer", "1", required=False, description="")
FLAG = Column("flag", "boolean", "", required=False, description="")
STAMP = Column("stamp", "timestamp", "", required=True, description="")

any_text = st.text(st.characters(), min_size=1)  # half surrogates included


@given(any_text)
@example("'")
@example("'\\u0041")
@example("=\\")
@example("\ud800")
def test_any_text_survives_a_csv_file(text):
    buffer = StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow([to_cell(text, TEXT), "end"])
    content = buffer.getvalue().encode().decode()
    assert content.count("\n") == 1
    (row,) = csv.reader(StringIO(content, newline=""), strict=True)
    assert from_cell(row[0], TEXT) == text


@given(any_text)
def test_no_cell_starts_a_formula(text):
    assert not escape(text).startswith(tuple("=+-@\t\r\n＝＋－＠"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_survive(text):
    assert unescape(escape(text)) == text


def test_an_ordinary_name_is_written_as_it_is():
    assert escape(r"blocks.0.attn, C:\layer") == r"blocks.0.attn, C:\layer"
    assert escape("=cmd()") == "'=cmd()"


@given(st.floats(-LARGEST_NUMBER, LARGEST_NUMBER))
def test_every_number_of_a_run_survives(value):
    assert repr(from_cell(to_cell(value, NUMBER), NUMBER)) == repr(value)


@given(st.integers(1 - LARGEST_INTEGER, LARGEST_INTEGER - 1))
def test_every_integer_of_64_bits_survives(value):
    assert from_cell(to_cell(value, INTEGER), INTEGER) == value


@pytest.mark.parametrize(
    ("value", "column"), [(1.1e100, NUMBER), (-1e308, NUMBER), (2**63, INTEGER), (-(2**63), INTEGER)]
)
def test_what_no_reader_could_add_up_is_neither_written_nor_read(value, column):
    with pytest.raises(BundleError, match="larger than any quantity"):
        to_cell(value, column)
    with pytest.raises(BundleError, match="expected a"):
        from_cell(repr(value), column)


def test_thousands_of_digits_are_no_integer():
    with pytest.raises(BundleError, match="expected a integer"):
        from_cell("9" * 5000, INTEGER)


@given(st.integers(0, 4 * 10**18))
def test_every_instant_survives_to_the_microsecond(unix_ns):
    cell = to_cell(utc_from_unix_ns(unix_ns), STAMP)
    assert len(cell) == 27
    assert from_cell(cell, STAMP) == utc_from_unix_ns(unix_ns)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(BundleError, match="finite"):
        to_cell(value, NUMBER)


def test_missing_is_empty_and_zero_is_zero():
    assert to_cell(None, NUMBER) == ""
    assert to_cell(0.0, NUMBER) == "0.0"
    assert from_cell("", NUMBER) is None
    assert [to_cell(flag, FLAG) for flag in (True, False, None)] == ["true", "false", ""]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("INF", NUMBER), ("nan", NUMBER), ("1e400", NUMBER), ("1_000", NUMBER), ("١٢", NUMBER), (" 1", NUMBER),
        ("1,5", NUMBER), ("0x10", NUMBER), ("1.0", INTEGER), ("True", FLAG), ("1", FLAG),
        ("2026-11-24T06:00:00Z", STAMP), ("2026-11-24 06:00:00.000000Z", STAMP),
        ("2026-13-24T06:00:00.000000Z", STAMP), ("2026-11-24T06:00:00.000000+00", STAMP), ("", STAMP),
    ],
)  # fmt: skip
def test_what_the_writer_would_not_write_is_refused(text, column):
    with pytest.raises(BundleError):
        from_cell(text, column)


@pytest.mark.parametrize(("value", "column"), [("1", NUMBER), (1.5, INTEGER), (1, TEXT), (1, FLAG), (1, STAMP)])
def test_a_value_of_another_type_is_refused(value, column):
    with pytest.raises(BundleError):
        to_cell(value, column)
