import ast
from pathlib import Path

import torchwatt.views

FORBIDDEN = {"os", "time", "threading", "subprocess", "pandas", "torch", "IPython", "pathlib", "random"}


def test_views_touch_nothing_outside():
    for path in Path(torchwatt.views.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in FORBIDDEN, (path.name, name)
                assert not name.startswith("torchwatt.") or name.split(".")[1] in {"core", "views"}, (path.name, name)
            assert not (isinstance(node, ast.Name) and node.id in {"print", "open"}), path.name
