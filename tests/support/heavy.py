"""Which values of a parameter `make test` runs, where the whole set is for `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import pytest

from tests.support.chosen import chosen


def heavy_unless(usual: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """Return values as parameters, those that are not usual marked `heavy`. A tuple is the values of several names."""

    def marked(value: Any) -> Any:
        arguments = value if isinstance(value, tuple) else (value,)
        return pytest.param(*arguments, marks=() if usual(value) else pytest.mark.heavy)

    return [marked(value) for value in values]


def one_of(cases: Sequence[str], case: str) -> pytest.MarkDecorator:
    """Return the mark of a test of one of several like cases: `make test` runs that one which the commit chooses."""
    assert case in cases
    return pytest.mark.chosen if case in chosen(cases, 1) else pytest.mark.heavy


def some_of(cases: Collection[str], count: int = 2, always: Collection[str] = ()) -> list[Any]:
    """Return names of like cases as parameters: `make test` runs those that the commit chooses, and `always`."""
    usual = chosen([name for name in cases if name not in always], count) | set(always)
    return [pytest.param(name, marks=() if name in usual else pytest.mark.heavy, id=name) for name in cases]
