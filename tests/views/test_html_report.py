import re
from base64 import b64decode
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.reports import HOSTILE, bare_report, named_report, sample_report
from tests.views import golden
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.views import to_html_fragment, to_html_page

# What JupyterLab's sanitiser keeps (packages/apputils/src/sanitizer.ts), as far as the fragment uses it.
TAGS = {"b", "br", "details", "div", "img", "span", "summary", "table", "td", "th", "tr"}
ATTRIBUTES = {"align", "alt", "cellpadding", "cellspacing", "colspan", "open", "src", "style", "title", "width"}
PROPERTIES = {
    "background", "border", "border-bottom", "border-collapse", "border-radius", "border-top", "box-sizing", "cursor",
    "display", "flex", "flex-wrap", "float", "font-size", "font-weight", "height", "line-height", "margin",
    "margin-left", "margin-top", "max-width", "min-width", "opacity", "overflow-wrap", "padding", "padding-bottom",
    "padding-top", "text-align", "vertical-align", "white-space", "width", "word-break",
}  # fmt: skip
VOID = {"br", "img", "meta"}


class Reader(HTMLParser):
    """Collects what a browser would see, and insists on balanced tags."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.styles, self.texts, self.sources = [], set(), set(), [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "style":
                self.styles.append(value)
            if name == "src":
                self.sources.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


REPORTS = {"sample": sample_report(), "bare": bare_report(), "hostile": named_report(*HOSTILE), "none": named_report()}


def test_golden_html():
    golden.check("report.html", to_html_fragment(sample_report()))


@pytest.mark.parametrize("name", REPORTS)
def test_only_what_the_sanitiser_keeps(name):
    reader = read(to_html_fragment(REPORTS[name]))
    assert reader.tags <= TAGS
    assert reader.attributes <= ATTRIBUTES
    for style in reader.styles:
        assert not re.search(r"currentColor|var\(|url\(|expression", style, re.IGNORECASE)
        assert {rule.partition(":")[0].strip() for rule in style.split(";") if rule} <= PROPERTIES
        assert "white;" not in style
        assert "#fff" not in style


@pytest.mark.parametrize("make", [to_html_fragment, to_html_page])
@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_fetched(name, make):
    html = make(REPORTS[name])
    assert all(source.startswith("data:image/svg+xml;base64,") for source in read(html).sources)
    assert not re.search(r"<(script|link|iframe|object|a)\b", html)
    assert "@import" not in html


def test_hostile_names_are_text_and_nothing_else():
    reader = read(to_html_page(named_report(*HOSTILE)))
    texts = "".join(reader.texts)
    assert "<script>alert(1)</script>" in texts
    assert "&lt;b&gt;" in texts
    assert "\u202e" not in texts
    assert not [name for name in reader.attributes if name.startswith("on")]


@examples(25)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=3, unique=True))
def test_any_name_gives_balanced_html(names):
    assert read(to_html_fragment(named_report(*names))).tags <= TAGS


def test_the_numbers_of_the_text_are_in_the_html():
    texts = " ".join(read(to_html_fragment(sample_report())).texts).replace("\N{NO-BREAK SPACE}", " ")
    for number in (
        "7.40 kJ",
        "90 % of repeats: 7.18 to 7.62 kJ · another meter: 6.86 to 7.94 kJ",
        "138 mg CO2e",
        "310 W",
        "5.46 kJ",
        "90 % of repeats: 5.30 to 5.63 kJ",
        "per training step",
        "170 J",
        "no dram zone",
        "SHARED_DEVICE",
    ):
        assert number in texts


def test_without_meters_there_are_dashes_and_no_zeros():
    texts = " ".join(read(to_html_fragment(bare_report())).texts)
    assert "—" in texts
    assert "nothing was metered" in texts
    assert "region=" in texts
    assert not re.search(r"\b0 J|\b0 W", texts)


def test_a_thousand_rows_are_shown_and_the_rest_is_folded_with_its_joules():
    html = to_html_fragment(named_report(*(f"l{i:04}" for i in range(1200))))
    texts = " ".join(read(html).texts)
    assert re.search(r"700 J +1\.40 kJ +2\.10 kJ +58\.3 % \s*\(700 smaller\)", texts)  # 3 J each
    assert html.count("<details") == 504  # and two views, how it was measured, the events
    assert len(html) < 1_000_000


def test_the_picture_is_svg_with_units_and_at_most_500_points_a_line():
    (source,) = read(to_html_fragment(sample_report())).sources
    svg = b64decode(source.partition(",")[2]).decode()
    root = ET.fromstring(svg)  # noqa: S314 our own picture
    space = "{http://www.w3.org/2000/svg}"
    labels = [element.text for element in root.iter(f"{space}text")]
    assert [label for label in labels if label.endswith(" W")] == ["0 W", "100 W", "200 W", "300 W", "400 W"]
    assert "time since start (s)" in labels
    lines = list(root.iter(f"{space}polyline"))
    assert len(lines) == 3
    assert all(len(line.get("points").split()) <= 500 for line in lines)


def test_the_power_axis_has_one_unit():
    curve = EnergyCurve(
        sample_report().curves[0].domain, np.array([0, 10**9]), np.array([0.0, 2.3]), "counter", "measured"
    )
    report = bare_report(curves=(curve,), unavailable=())
    (source,) = read(to_html_fragment(report)).sources
    svg = b64decode(source.partition(",")[2]).decode()
    assert re.findall(r">([\d.]+ m?W)<", svg) == ["0 W", "0.5 W", "1 W", "1.5 W", "2 W", "2.5 W"]


@pytest.mark.parametrize("report", [sample_report(), named_report("(unattributed)", "fc")])
def test_the_columns_of_every_row_add_up_to_its_own_joules(report):
    def joules(cell):
        value, unit = cell.split()
        return float(value) * {"J": 1, "kJ": 1000}[unit]

    html = to_html_fragment(report)
    rows = re.findall(r"<tr>(.*?)</tr>", html[: html.index("Module tree")])
    cells = [re.findall(r">([^<>]*)</td>", row) for row in rows]
    full = [[row[1], *row[-5:-2]] for row in cells if len(row) >= 9]
    assert len(full) >= 2
    for whole, *parts in full:
        assert sum(joules(part) for part in parts if part != "—") == pytest.approx(joules(whole), rel=0.01)


def test_a_page_is_one_file_with_a_title_and_a_dark_side():
    page = to_html_page(sample_report())
    assert page.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in page
    assert "<title>train tiny GPT · torchwatt</title>" in page
    assert "prefers-color-scheme: dark" in page
    assert "<title>&lt;img" in to_html_page(named_report("<img src=x onerror=alert(1)>"))


def test_a_page_has_one_heading_and_a_main_part_and_starts_with_the_answer():
    page = to_html_page(sample_report())
    assert page.count("<h1") == page.count("<main>") == 1
    assert page.index("<h1") < page.index("Most of it:") < page.index("blocks.*.mlp.fc1") < page.index("How this was")
    assert "<h1" not in to_html_fragment(sample_report())  # it would be a heading of the notebook
