"""The golden files of this folder."""

from functools import partial
from pathlib import Path

from tests.support import golden

FOLDER = Path(__file__).parent / "golden"
check = partial(golden.check, FOLDER)
