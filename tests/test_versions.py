import tomllib
from pathlib import Path

import torchwatt


def test_the_project_file_and_the_package_tell_one_version():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["version"] == torchwatt.__version__
