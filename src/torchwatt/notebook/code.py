"""A user's code as IPython itself would run it: same names, same namespace, same lines in tracebacks."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from itertools import takewhile
from types import CodeType
from typing import Any

from IPython.core.error import UsageError

from torchwatt.notebook.shell import Shell, cell_number, coming_cell_number


@dataclass(frozen=True, slots=True)
class Code:
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
        """Run code that waits, on the loop that runs now."""
        __tracebackhide__ = True
        value = None
        for code in (self.body, self.tail):
            if code is None:
                continue
            value = eval(code, global_ns)  # noqa: S307
            if code.co_flags & inspect.CO_COROUTINE:
                value = await value
        return value if self.tail is not None else None


def cell_code(shell: Shell, cell: str) -> Code:
    """Compile the body of a cell.

    The line of the magic itself becomes a comment, so that a traceback names the lines as the user sees them.

    Raises:
        SyntaxError: The user's text is not Python.
        UsageError: There is nothing to run.
    """
    return _compile(shell, _python_of(shell, cell))


def cell_waits(shell: Shell, cell: str) -> bool:
    """Return whether the body of a cell that is about to run has an `await` at top level.

    Raises:
        SyntaxError: The user's text is not Python. IPython shows one that is raised before the cell runs as the
            user's line alone, and one that is raised by a magic below the frames of IPython and of the magic.
    """
    source = _python_of(shell, cell)
    name = shell.compile.cache(source, coming_cell_number(shell))
    with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
        code: CodeType = shell.compile(source, name, "exec")
    return bool(code.co_flags & inspect.CO_COROUTINE)


def _python_of(shell: Shell, cell: str) -> str:
    # IPython drops the empty lines at the top: they are put back, so that the lines keep their numbers.
    empty = sum(1 for _ in takewhile(str.isspace, cell.splitlines(keepends=True)))
    return "# %%energy\n" + "\n" * empty + str(shell.transform_cell(cell))


def statement_code(shell: Shell, statement: str) -> Code:
    """Compile what follows `%energy` on its line.

    Raises:
        SyntaxError: The user's text is not Python.
    """
    return _compile(shell, shell.transform_cell(statement))


def _compile(shell: Shell, source: str) -> Code:
    name = shell.compile.cache(source, cell_number(shell))
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=name))
    if not tree.body:
        raise UsageError("nothing to measure: the cell holds no code under %%energy")
    last = None
    if isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    # The shell's compiler, not `compile`: it knows the user's `from __future__` and does not inherit ours.
    with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
        body = shell.compile(tree, name, "exec")
        tail = None if last is None else shell.compile(last, name, "eval")
    return Code(body, tail)
