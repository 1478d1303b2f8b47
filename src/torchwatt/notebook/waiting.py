"""Top-level `await` under `%%energy`.

IPython runs a magic as an ordinary function, which cannot await. If the cell contains a top-level `await`, the call of
the magic is rewritten, after IPython's own transformations, to an async magic awaited on the same loop and thread.
"""

from __future__ import annotations

import ast
from typing import Any

from torchwatt.notebook.code import cell_waits
from torchwatt.notebook.shell import Shell

MAGIC = "energy"
ASYNC_MAGIC = "_energy_async"
_CALL = f"get_ipython().run_cell_magic({MAGIC!r},"


class AwaitHook:
    """IPython input transformer that awaits `%%energy` if its cell contains a top-level `await`."""

    has_side_effects = False

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def __call__(self, lines: list[str]) -> list[str]:
        """Return the transformed lines.

        Raises:
            SyntaxError: The cell is not valid Python.
        """
        if not lines or not lines[0].startswith(_CALL):
            return lines
        body = _body_of("".join(lines))
        if body is None or not cell_waits(self._shell, body):
            return lines
        return ["await " + lines[0].replace(repr(MAGIC), repr(ASYNC_MAGIC), 1), *lines[1:]]


def _body_of(source: str) -> str | None:
    """Return `body` of a single call `run_cell_magic(name, line, body)`; None for anything else."""
    statements: list[Any] = ast.parse(source).body
    if len(statements) != 1 or not isinstance(statements[0].value, ast.Call):
        return None
    return str(ast.literal_eval(statements[0].value.args[2]))
