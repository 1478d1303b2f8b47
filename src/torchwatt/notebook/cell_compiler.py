"""Compiles and runs a cell's code as IPython would: same namespace, file names and line numbers."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from itertools import takewhile
from types import CodeType
from typing import Any

from IPython.core.error import UsageError

from torchwatt.notebook.frontend import Shell, cell_number, coming_cell_number


@dataclass(frozen=True, slots=True)
class CellCode:
    """Compiled code; `tail` is the last expression, whose value is the value of the cell."""

    body: CodeType
    tail: CodeType | None

    @property
    def waits(self) -> bool:
        """Return whether there is an `await` at top level."""
        return any(c is not None and c.co_flags & inspect.CO_COROUTINE for c in (self.body, self.tail))

    def run(self, global_ns: dict[str, Any], local_ns: Any) -> Any:
        """Run the code and return the value of its last expression."""
        __tracebackhide__ = True
        exec(self.body, global_ns, local_ns)  # noqa: S102  # the user's own code, in the user's own namespace
        return None if self.tail is None else eval(self.tail, global_ns, local_ns)  # noqa: S307

    async def run_async(self, global_ns: dict[str, Any]) -> Any:
        """Run code with top-level `await` on the running event loop; return the value of its last expression."""
        __tracebackhide__ = True
        value = None
        for code in (self.body, self.tail):
            if code is None:
                continue
            value = eval(code, global_ns)  # noqa: S307
            if code.co_flags & inspect.CO_COROUTINE:
                value = await value
        return value if self.tail is not None else None


def compile_cell(shell: Shell, cell: str) -> CellCode:
    """Compile the body of a cell.

    The line of the magic itself becomes a comment, so that line numbers in tracebacks are those of the cell.

    Raises:
        SyntaxError: The cell is not valid Python.
        UsageError: The cell contains no code.
    """
    return _compile_source(shell, _cell_source(shell, cell))


def cell_awaits(shell: Shell, cell: str) -> bool:
    """Return whether the body of a cell that is about to run has an `await` at top level.

    Raises:
        SyntaxError: The cell is not valid Python. Raised before the cell runs, IPython shows it with the user's line
            only; raised in a magic, with frames of IPython and of the magic.
    """
    source = _cell_source(shell, cell)
    name = shell.compile.cache(source, coming_cell_number(shell))
    with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
        code: CodeType = shell.compile(source, name, "exec")
    return bool(code.co_flags & inspect.CO_COROUTINE)


def _cell_source(shell: Shell, cell: str) -> str:
    # IPython removes empty lines at the top; they are restored to keep line numbers.
    empty = sum(1 for _ in takewhile(str.isspace, cell.splitlines(keepends=True)))
    return "# %%energy\n" + "\n" * empty + str(shell.transform_cell(cell))


def compile_statement(shell: Shell, statement: str) -> CellCode:
    """Compile the statement after `%energy` on its line.

    Raises:
        SyntaxError: The statement is not valid Python.
    """
    return _compile_source(shell, shell.transform_cell(statement))


def _compile_source(shell: Shell, source: str) -> CellCode:
    name = shell.compile.cache(source, cell_number(shell))
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=name))
    if not tree.body:
        raise UsageError("nothing to measure: the cell contains no code under %%energy")
    last_expression = None
    if isinstance(tree.body[-1], ast.Expr):
        last_expression = ast.Expression(tree.body.pop().value)
    # The shell's compiler applies the user's `from __future__` imports, not those of this file.
    with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
        body = shell.compile(tree, name, "exec")
        tail = None if last_expression is None else shell.compile(last_expression, name, "eval")
    return CellCode(body, tail)


MAGIC = "energy"
ASYNC_MAGIC = "_energy_async"
_MAGIC_CALL = f"get_ipython().run_cell_magic({MAGIC!r},"


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
        if not lines or not lines[0].startswith(_MAGIC_CALL):
            return lines
        body = _magic_body("".join(lines))
        if body is None or not cell_awaits(self._shell, body):
            return lines
        return ["await " + lines[0].replace(repr(MAGIC), repr(ASYNC_MAGIC), 1), *lines[1:]]


def _magic_body(source: str) -> str | None:
    """Return `body` of a single call `run_cell_magic(name, line, body)`; None for anything else."""
    statements: list[Any] = ast.parse(source).body
    if len(statements) != 1 or not isinstance(statements[0].value, ast.Call):
        return None
    return str(ast.literal_eval(statements[0].value.args[2]))
