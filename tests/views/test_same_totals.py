"""Every view against the ledger: each parent is the sum of its children there, whatever is folded."""

import json
import random
import re
import time
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from math import fsum
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.heavy import heavy_unless
from tests.support.reports import CPU, GPU, bare_report, live_sums
from torchwatt.audit.table_rows import rows_by_table
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.terms import ROOT, UNATTRIBUTED
from torchwatt.core.trace import ModuleInfo
from torchwatt.reports import dataframes
from torchwatt.reports.report_result import MAX_HTML_BYTES
from torchwatt.views import LiveLayersView, format_energy, to_html_fragment, to_html_page, to_payload, to_text
from torchwatt.views.layer_groups import VIEWS, cut_groups, layer_groups, tree_groups
from torchwatt.views.module_tree import MAX_DEPTH
from torchwatt.views.report_payload import MAX_PAYLOAD_BYTES

OWN_ROWS = (UNATTRIBUTED, "(profiler)", "(compile)")


def made_report(names, seed=0, known=True):
    """Book joules to some phases of some of these names in two domains; sums of 1/1024 J are exact in any order."""
    dice = random.Random(seed)
    ledgers = []
    for domain in (GPU, CPU):
        entries = []
        for name in (*names, *OWN_ROWS):
            some = dice.sample(("forward", "backward", "optimizer"), dice.randint(0, 3))
            for phase in ["other"] if name in OWN_ROWS else some:
                joules = dice.randint(-200 if dice.random() < 0.05 else 0, 10 ** dice.randint(1, 6)) / 1024
                static_j = dice.choice((None, joules / 2))
                stage = dice.choice(("train", "validation")) if domain is GPU else ""
                entries.append(
                    Entry(domain, name, phase, joules, None, None, static_j, None, 0.1, None, "fit", "apportioned",
                          stage=stage)
                )  # fmt: skip
        total_j = fsum(entry.energy_self_j for entry in entries)
        ledgers.append(Ledger(domain, total_j, tuple(entries), "counter", "measured", 1.0, 1.0))
    modules = tuple(ModuleInfo(name, "Block") for name in names) if known else ()
    return bare_report(ledgers=tuple(ledgers), modules=modules, unavailable=())


class Truth:
    """Plain sums over all names that begin with a name and a dot."""

    def __init__(self, report):
        entries = [entry for ledger in report.ledgers for entry in ledger.entries]
        self.root = ROOT in {m.fqn for m in report.modules} or any(entry.fqn == ROOT for entry in entries)
        self.slots, self.total, self.own = defaultdict(float), defaultdict(float), defaultdict(float)
        for entry in entries:
            self.own[entry.fqn] += entry.energy_self_j
            if entry.fqn in OWN_ROWS:
                continue
            ends = [n for n, char in enumerate(entry.fqn) if char == "."]
            for name in {entry.fqn, *(entry.fqn[:end] for end in ends), *([ROOT] if self.root else [])}:
                self.slots[name, entry.phase] += entry.energy_self_j
                self.total[name] += entry.energy_self_j
        self.modules_j = fsum(joules for name, joules in self.own.items() if name not in OWN_ROWS)
        self.names = {*self.total, *([ROOT] if self.root else [])}


class Tree(HTMLParser):
    """Reads the module tree of a page: the names around each line, and what stands on it."""

    def __init__(self, html):
        super().__init__()
        self.lines, self.open, self.above, self.text, self.depth = [], [], [], "", 0
        self.feed(html[html.index("Module tree") : html.rindex("How this was measured")])

    def handle_starttag(self, tag, attrs):
        style = dict(attrs).get("style", "")
        if tag == "summary" or (tag == "div" and style.startswith("padding:2px 0 2px 16px")):
            self.text, self.open = "", [*self.open, tag]

    def handle_data(self, data):
        self.text += f"\0{data}"

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1]:
            self.open.pop()
            texts = [part.strip() for part in self.text.split("\0") if part.strip()]
            forward, backward, total, _share, name = texts[:5]
            self.lines.append(
                SimpleNamespace(above=tuple(self.above), name=name, forward=forward, backward=backward, total=total)
            )
            if tag == "summary":
                self.above.append(name)
        elif tag == "details" and self.above:
            self.above.pop()


def fqn_of(line):
    path = [name for name in line.above if name != ROOT]
    return ".".join([*path, line.name]) if line.name != ROOT else ROOT


def check_rows(report, truth):
    rows = dataframes.layer_frame(report)
    assert fsum(rows.energy_self_j) == report.energy_j
    rows = rows[~rows.fqn.isin(OWN_ROWS)]
    assert rows.groupby(["fqn", "phase"]).energy_total_j.sum().to_dict() == truth.slots
    assert not rows.duplicated(["domain", "fqn", "phase", "stage"]).any()


def check_tree(truth, shown, fits):
    """Check lines with their container (None at the top), fqn, `smaller`, and joules as text."""
    siblings = defaultdict(list)
    for line in shown:
        if not line.smaller:
            siblings[line.container].append(line.fqn)
    seen = {line.fqn for line in shown if not line.smaller}
    assert seen <= truth.names
    assert len(seen) == sum(not line.smaller for line in shown)
    for line in shown:
        if line.smaller:
            inside_j = (
                truth.modules_j if line.container is None else truth.total[line.container] - truth.own[line.container]
            )
            assert line.total == format_energy(inside_j - fsum(truth.total[name] for name in siblings[line.container]))
        else:
            assert line.total == format_energy(truth.total[line.fqn])
            assert line.forward == format_energy(truth.slots.get((line.fqn, "forward")))
            assert line.backward == format_energy(truth.slots.get((line.fqn, "backward")))
    assert len(seen) + sum(line.smaller for line in shown) == len(truth.names)
    assert not (fits and any(line.smaller for line in shown))


def lines_of_html(html):
    for line in Tree(html).lines:
        smaller = int(found[1]) if (found := re.fullmatch(r"\((\d+) smaller\)", line.name)) else 0
        above = [name for name in line.above if name != ROOT]
        container = ".".join(above) or (ROOT if line.above else None)
        yield SimpleNamespace(container=container, fqn=fqn_of(line), smaller=smaller, forward=line.forward,
                              backward=line.backward, total=line.total)  # fmt: skip


def lines_of_payload(payload):
    rows = payload["layers"]
    assert payload["folded"] is None
    for index, row in enumerate(rows):
        assert row["parent"] is None or row["parent"] < index
        yield SimpleNamespace(
            container=None if row["parent"] is None else rows[row["parent"]]["fqn"],
            fqn=row["fqn"],
            smaller=row.get("folded", 0),
            forward=format_energy(row["total_j"].get("forward")),
            backward=format_energy(row["total_j"].get("backward")),
            total=format_energy(row["energy_j"]),
        )


def check_text(report, truth):
    text = to_text(report, by="tree")
    text = text[text.index("layers, ") :]
    for line in text.splitlines():
        if line.startswith(f"{ROOT} "):
            assert line.removeprefix(ROOT).strip().startswith(f"{format_energy(truth.total[ROOT])} ")
    assert truth.root == (f"\n{ROOT}" in text)


def check_groups(report, truth):
    """Check every view: its rows, cut or not, add up to the total, and each is the sum of the names it stands for."""
    for view in VIEWS:
        for groups in (layer_groups(report, view), cut_groups(report, layer_groups(report, view), 5)):
            assert fsum(group.energy_j for group in groups) == report.energy_j
            shares = [line.split(" %")[0].split()[-1] for line in table_lines(to_text(report, by=view))]
            assert abs(sum(map(float, shares)) - (100 if report.energy_j > 0 else 0)) <= 0.051 * len(shares)
    assert {group.name: group.energy_j for group in layer_groups(report, "hottest")} == truth.own
    alike = defaultdict(list)
    for name in truth.own:
        alike[numbers_apart(name)].append(name)
    for group in layer_groups(report, "blocks"):
        members = [name for name in alike[numbers_apart(group.name)] if stands_for(group.name, name)]
        assert group.energy_j == fsum(truth.own[name] for name in members)
        assert (group.count or 1) == len(members)
    for rows in (layer_groups(report, "tree"), tree_groups(report, 5)):
        assert fsum(row.energy_j for row in rows) == report.energy_j
        for row in rows:
            if row.name in truth.names:
                assert row.total_j == truth.total[row.name]


def stands_for(folded, name):
    """Tell whether `h.*.mlp` or `h.{0-2,5}.mlp` stands for a name."""
    return all(map(part_stands_for, folded.split("."), name.split(".")))


def numbers_apart(name):
    """Return the parts of a name or of a folded one, "*" for each number: what stands for a name has the same."""
    return tuple("*" if part.isdecimal() or part.startswith("{") else part for part in name.split("."))


def part_stands_for(part, number):
    if part == "*":
        return number.isdecimal()
    if not part.startswith("{"):
        return part == number
    ends = [[int(end) for end in item.split("-")] for item in part.strip("{}").split(",")]
    return number.isdecimal() and any(item[0] <= int(number) <= item[-1] for item in ends)


def with_joules(report):
    """Return a report without the entries that a live view cannot have: those of no joules or less."""
    ledgers = []
    for ledger in report.ledgers:
        entries = tuple(entry for entry in ledger.entries if entry.energy_self_j > 0)
        ledgers.append(replace(ledger, entries=entries, energy_j=fsum(entry.energy_self_j for entry in entries)))
    return replace(report, ledgers=tuple(ledgers))


def table_lines(text):
    rule = "-" * 100
    return [line for line in text.split(rule)[1].splitlines() if " %" in line]


def check_csv(report, truth):
    found = defaultdict(float)
    for row in rows_by_table(report)["layer"]:
        found[row["fqn"]] += row["energy_self_j"]
    for name in truth.names - {ROOT}:
        assert truth.total[name] == fsum(
            joules for fqn, joules in found.items() if fqn == name or fqn.startswith(f"{name}.")
        )


def check_all(report, *, csv=True):
    truth = Truth(report)
    shallow = all(name.count(".") < MAX_DEPTH - 1 for name in truth.names)
    count = len(truth.names) if shallow else 10**6
    check_rows(report, truth)
    check_text(report, truth)
    check_groups(report, truth)
    if csv:
        check_csv(report, truth)
    if not count:
        return
    check_tree(truth, list(lines_of_html(to_html_page(report))), fits=count <= 400)
    check_tree(truth, list(lines_of_html(to_html_fragment(report, MAX_HTML_BYTES))), fits=count <= 15)
    payload = to_payload(report)
    assert len(json.dumps(payload)) < MAX_PAYLOAD_BYTES
    check_tree(truth, list(lines_of_payload(payload)), fits=count <= 150)
    used = with_joules(report)
    truth = Truth(used)
    live = LiveLayersView().payload(live_sums(used))
    check_tree(truth, list(lines_of_payload(json.loads(live["layers_text"]))), fits=count <= 100)


@st.composite
def trees(draw):
    """Draw names as `named_modules` gives them: every container of a name is one, too."""
    names = [ROOT] if draw(st.booleans()) else []
    paths = [()]
    for _ in range(draw(st.integers(1, 40))):
        path = (*draw(st.sampled_from(paths)), draw(st.sampled_from(["a", "ab", "abc", "0", "1", "10", "a#2"])))
        if path not in paths:
            paths.append(path)
    return [*names, *(".".join(path) for path in paths[1:])]


@examples(15)
@given(trees(), st.integers(0, 10**6), st.booleans())
def test_any_tree_has_the_same_totals_in_all_views(names, seed, known):
    check_all(made_report(names, seed, known))


def random_names(count, seed):
    dice = random.Random(seed)
    names = []
    for n in range(count - 1):
        above = f"{dice.choice(names)}." if names and dice.random() < 0.9 else ""
        names.append(f"{above}m{n}")
    return [ROOT, *names]


@pytest.mark.timeout(600)  # ten thousand modules, where other tests run beside them
@pytest.mark.parametrize("count", heavy_unless(lambda count: count <= 100, [10, 100, 1000, 10_000]))
def test_models_of_any_size_have_the_same_totals_in_all_views(count):
    check_all(made_report(random_names(count, count), count), csv=count <= 1000)


BLOCK = (".ln_1", ".attn", ".attn.c_attn", ".attn.c_proj", ".ln_2", ".mlp", ".mlp.c_fc", ".mlp.gelu", ".mlp.c_proj")
GPT = [ROOT, "wte", "wpe", "drop", "h", "ln_f", "lm_head"]
GPT += [f"h.{i}{part}" for i in range(48) for part in ("", *BLOCK, ".drop")]
SHAPES = {
    "gpt": GPT,
    "two hundred levels": [ROOT, *(".".join(["x"] * n) for n in range(1, 201))],
    "one module with 700 children": [ROOT, "all", *(f"all.{n}" for n in range(700))],
    "names that begin like others": [ROOT, "a", "a.b", "ab", "ab.b", "a.bc", "abc", "a.b.c"],
}
BIG_SHAPES = {
    "a thousand levels": [ROOT, *(".".join(["x"] * n) for n in range(1, 1001))],
    "one module with 5,000 children": [ROOT, "all", *(f"all.{n}" for n in range(5000))],
    "5,000 models": [f"m{n}" for n in range(5000)],
}


@pytest.mark.parametrize(
    "names",
    [*SHAPES.values(), *(pytest.param(names, marks=pytest.mark.heavy) for names in BIG_SHAPES.values())],
    ids=[*SHAPES, *BIG_SHAPES],
)
def test_odd_shapes_have_the_same_totals_in_all_views(names):
    check_all(made_report(names, 3), csv=False)


def test_a_model_is_whole_where_its_root_did_nothing_itself():
    names = ["a", "a.b", "a.c"]
    entries = tuple(
        Entry(GPU, name, "forward", 1.0, None, None, None, None, 0.1, 1, "fit", "apportioned") for name in names[1:]
    )
    ledger = Ledger(GPU, 2.0, entries, "counter", "measured", 1.0, 1.0)
    report = bare_report(ledgers=(ledger,), modules=tuple(ModuleInfo(n, "X") for n in (ROOT, *names)), unavailable=())
    rows = dataframes.layer_frame(report).set_index("fqn")
    assert rows.energy_total_j.to_dict() == {"a.b": 1.0, "a.c": 1.0, ROOT: 2.0, "a": 2.0}
    assert rows.energy_self_j.to_dict() == {"a.b": 1.0, "a.c": 1.0, ROOT: 0.0, "a": 0.0}
    assert rows.calls.isna()[ROOT]
    assert rows.provenance[ROOT] == "derived"
    assert to_text(report, max_layers=1).count("2.00 J") >= 2
    assert [group.total_j for group in layer_groups(report, "tree")] == [2.0, 2.0, 1.0, 1.0]


def test_the_terminal_folds_layers_and_keeps_the_model_whole():
    report = made_report(GPT, 1)
    text = to_text(report, max_layers=5, by="hottest")
    booked = {entry.fqn for ledger in report.ledgers for entry in ledger.entries} - {*OWN_ROWS}
    assert f"\n{len(booked) - 5} more " in text
    tree = to_text(report, max_layers=5, by="tree")
    assert re.search(rf"\n\(root\) +{re.escape(format_energy(Truth(report).total[ROOT]))} ", tree)
    assert " smaller)" in tree


@pytest.mark.alone
def test_ten_thousand_modules_make_a_page_in_no_time_and_of_a_usable_size():
    report = made_report(random_names(10_000, 5), 5)
    began_s = time.process_time()
    page = to_html_page(report)
    assert time.process_time() - began_s < 5
    assert len(page) < 3_000_000
