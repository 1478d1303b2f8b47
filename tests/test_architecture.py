"""docs/architecture.md names functions that exist, each of which uses what the row above it names."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import torchwatt as tw

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = {
    title: re.findall(r"^\| `([a-z_]+\.[\w.]+)` \|", text, re.MULTILINE)
    for title, text in re.findall(r"^## (One .*?)\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
}
# A value that one row writes and the next reads; both name it.
VALUES = {"rows", "Row", "Recording", "Trace", "Report", "EnergyCurve", "Ledger", "Activity", "RecordedRanges"}


def location(name: str) -> tuple[Path, list[str]]:
    """Return the file of a function or class, and its name within the file."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        path = REPOSITORY.joinpath("src", "torchwatt", *parts[:n]).with_suffix(".py")
        if path.is_file():
            return path, parts[n:]
    raise AssertionError(f"no file for {name}")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def code(name: str) -> ast.AST:
    path, parts = location(name)
    node: ast.AST = tree(path)
    for part in parts:
        inner = getattr(node, "body", [])
        node = next(n for n in inner if getattr(n, "name", None) == part)
    return node


def named(name: str, depth: int = 4) -> set[str]:
    """Return the names that a function uses, itself or through functions of its own file."""
    path, _ = location(name)
    local = {n.name: n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    seen: set[str] = set()
    todo = [code(name)]
    for _ in range(depth):
        new = set[str]()
        for node in todo:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute):
                    new.add(inner.attr)
                elif isinstance(inner, ast.Name):
                    new.add(inner.id)
        todo = [local[one] for one in new - seen if one in local]
        seen |= new
    return seen


def are_related(above: str, below: str) -> bool:
    """Return whether one calls the other, both are of one class, or both use a value that is handed over."""
    one, other = above.split("."), below.split(".")
    calls = other[-1] in named(above) or one[-1] in named(below)
    values = VALUES & (named(above) | {one[-1]}) & (named(below) | {other[-1]})
    return calls or one[:-1] == other[:-1] or bool(values)


@pytest.mark.parametrize("title", WALKS)
def test_every_function_of_a_walk_exists(title):
    assert len(WALKS[title]) >= 10
    for name in WALKS[title]:
        _, parts = location(name)
        assert code(name), name
        module = import_module("torchwatt." + name[: -len(".".join(parts)) - 1])
        assert hasattr(module, parts[0])


@pytest.mark.parametrize("title", WALKS)
def test_each_row_uses_one_of_the_two_above_it(title):
    walk = WALKS[title]
    for i, below in enumerate(walk[1:], 1):
        assert any(are_related(above, below) for above in walk[max(i - 2, 0) : i]), f"{below} uses none of those above"


def test_all_packages_are_listed():
    table = PAGE.partition("## Packages")[2].partition("## One reading")[0]
    folders = {p.parent.name for p in (REPOSITORY / "src" / "torchwatt").glob("*/__init__.py")}
    assert folders == {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }


def test_the_terms_are_those_of_the_code():
    from torchwatt.core.terms import METHODS, PHASES, PROVENANCES, RESERVED

    terms = PAGE.partition("## Terms")[2]
    named_there = set(re.findall(r"`([^`]+)`", terms))
    assert {*METHODS, *PHASES, *PROVENANCES, *RESERVED} - {"(root)"} <= named_there


def test_the_first_reading_is_at_most_six_modules_from_the_public_call(powercap, monkeypatch):
    from torchwatt.sensors.readers.rapl_reader import RaplReader

    paths: list[list[str]] = []
    read = RaplReader.read

    def noted(reader: RaplReader, key: str) -> float:
        frame, modules = sys._getframe(1), ["torchwatt.sensors.readers.rapl_reader"]
        while frame is not None:
            if (name := frame.f_globals["__name__"]).startswith("torchwatt.") and name not in modules:
                modules.append(name)
            frame = frame.f_back
        paths.append(modules[::-1])
        return read(reader, key)

    monkeypatch.setattr(RaplReader, "read", noted)
    with tw.profile(powercap_root=powercap.root, layers="off", live="off", baseline_s=0.0):
        pass
    assert paths[0][0] == "torchwatt.session.profile"
    assert len(paths[0]) <= 6, paths[0]
