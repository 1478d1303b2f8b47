"""How many examples a law of hypothesis has: few at a commit, ten times as many with the profile of `make test-all`."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

COMMIT, HEAVY = 20, 200  # examples of a law that does not say how many; tests/conftest.py registers the profiles


def examples(count: int, **options: Any) -> settings:
    """Return the settings of a law with `count` examples at a commit: a law that is slow, or has many cases."""
    return settings(max_examples=count * settings().max_examples // COMMIT, **options)
