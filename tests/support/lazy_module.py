"""Modules that take seconds to import, imported when a test uses them: each worker collects every file of tests."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest


class LazyModule:
    """A module that is imported when one of its names is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest looks for marks of its own at everything in a file
            raise AttributeError(name)
        return getattr(import_module(self._name), name)


def skip_without(*packages: str, reason: str) -> None:
    """Skip the file that calls this where one of the packages is not installed; none is imported."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: {reason}", allow_module_level=True)
