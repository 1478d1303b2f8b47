"""One table says which extra brings an optional package; it agrees with pyproject.toml, and nobody repeats it."""

import re
import tomllib
from pathlib import Path

from torchwatt.core.errors import EXTRA_OF, install_command

ROOT = Path(__file__).parents[2]
IMPORT_NAMES = {"opentelemetry-api": "opentelemetry", "mlflow-skinny": "mlflow", "scikit-learn": "sklearn"}


def test_the_table_is_that_of_pyproject():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    listed = {
        IMPORT_NAMES.get(name := re.split("[<>=]", requirement)[0], name.replace("-", "_")): extra
        for extra, requirements in extras.items()
        for requirement in requirements
    }
    assert listed.items() <= EXTRA_OF.items()
    assert set(EXTRA_OF.values()) == set(extras)


def test_a_package_without_an_extra_is_installed_by_its_own_name():
    assert install_command("duckdb") == "pip install 'torchwatt[fleet]'"
    assert install_command("pyarrow") == "pip install pyarrow"


def test_no_other_file_names_an_extra():
    sources = (ROOT / "src" / "torchwatt").rglob("*.py")
    assert [path.name for path in sources if "'torchwatt[" in path.read_text(encoding="utf-8")] == ["errors.py"]
