"""Recordings that others made, which are not part of this repository: tests on them come beside those of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set where missing recordings are a failure and not a skip: in CI, where they are there.
REQUIRE = "TORCHWATT_REQUIRE_TRACES"


def recordings_of_others() -> Path:
    """Return their folder. To be called while a file of tests is imported: without them the file is one skip.

    Raises:
        FileNotFoundError: They are missing where they must not be.
    """
    default = Path(__file__).resolve().parents[3] / "shared" / "traces"
    folder = Path(os.environ.get("TORCHWATT_TRACES", default))
    if not (folder / "index.json").is_file():
        reason = f"no recordings of others in {folder}; name their folder by TORCHWATT_TRACES"
        if os.environ.get(REQUIRE):
            raise FileNotFoundError(f"{REQUIRE} is set, but there are {reason}")
        pytest.skip(reason, allow_module_level=True)
    return folder
