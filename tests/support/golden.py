"""Compare with a file beside the tests; TORCHWATT_GOLDEN=1 writes it anew."""

import os


def check(folder, name, found):
    path = folder / name
    if os.environ.get("TORCHWATT_GOLDEN"):
        folder.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8", newline="\n")
    assert found == path.read_text(encoding="utf-8"), f"{name} differs; TORCHWATT_GOLDEN=1 writes it anew"
