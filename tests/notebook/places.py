"""Folders for everything that Jupyter and IPython would otherwise read from, or leave in, the home directory."""

from pathlib import Path

NAMES = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")


def places(root: Path) -> dict[str, str]:
    """Make one folder a variable below `root`."""
    made = {name: root / name.lower() for name in NAMES}
    for folder in made.values():
        folder.mkdir()
    return {name: str(folder) for name, folder in made.items()}
