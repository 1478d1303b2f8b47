from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest


@pytest.fixture
def run_on(run_on_gpus: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Return a runner of Python code on a machine, whose time begins with the code."""
    return partial(run_on_gpus, timeout_s=120.0)
