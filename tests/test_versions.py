import json
import re
import tomllib
from pathlib import Path

import torchwatt

ROOT = Path(__file__).parents[1]


def test_the_project_file_the_package_and_the_front_end_tell_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    front = json.loads((ROOT / "extension" / "package.json").read_text(encoding="utf-8"))
    assert project["project"]["version"] == front["version"] == torchwatt.__version__


def test_the_lock_file_names_no_registry():
    lock = (ROOT / "extension" / "yarn.lock").read_text(encoding="utf-8")
    # A package from elsewhere than the user's own registry would be locked by its address.
    addresses = [line for line in lock.splitlines() if re.search(r"https?://|__archiveUrl|%3A%2F%2F", line)]
    assert addresses == []
    assert lock.count("  resolution: ") > 300
