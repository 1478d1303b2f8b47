import json
import tomllib
from pathlib import Path

import torchwatt

ROOT = Path(__file__).parents[1]


def test_the_project_file_the_package_and_the_front_end_tell_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    front_end = json.loads((ROOT / "extension" / "package.json").read_text())
    assert project["project"]["version"] == torchwatt.__version__ == front_end["version"]
