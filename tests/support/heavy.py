"""Which values of a parameter `make test` runs, where the whole set is for `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def heavy_unless(usual: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """Return values as parameters, those that are not usual marked `heavy`. A tuple is the values of several names."""

    def marked(value: Any) -> Any:
        arguments = value if isinstance(value, tuple) else (value,)
        return pytest.param(*arguments, marks=() if usual(value) else pytest.mark.heavy)

    return [marked(value) for value in values]
