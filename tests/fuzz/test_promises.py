"""`SECURITY.md` names a test for each promise, and each of these tests is there."""

import ast
import re

from tests.conftest import REPOSITORY

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_each_promise_names_a_test_that_exists():
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    table = text.partition("| promise | test |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) > 20
    for row in table:
        found = NAMED.findall(row)
        assert found, row
        for path, name in found:
            tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
            assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, (path, name)
