"""`%energy` and `%%energy`."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING, Any

from IPython.core.displayhook import DisplayHook
from IPython.core.error import UsageError
from IPython.core.magic import (
    Magics,
    cell_magic,
    line_cell_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
    output_can_be_silenced,
)

from torchwatt.notebook import completing
from torchwatt.notebook.auto import Auto
from torchwatt.notebook.block import Block
from torchwatt.notebook.code import Code, cell_code, statement_code
from torchwatt.notebook.comm import channel
from torchwatt.notebook.flags import Asked, parse
from torchwatt.notebook.history import History
from torchwatt.notebook.shell import Shell, cell_number
from torchwatt.notebook.waiting import ASYNC_MAGIC, MAGIC, AwaitHook

if TYPE_CHECKING:
    from torchwatt.session import Run

WORDS = ("on", "off", "history")
_MAX_NAME = 60  # characters of a statement, in the name of its run


@magics_class
class EnergyMagics(Magics):
    """The two forms of the magic, and the one that waits, which only `AwaitHook` calls."""

    shell: Shell

    def __init__(self, shell: Shell) -> None:
        super().__init__(shell)
        self._latest: Run | None = None
        self.auto = Auto(shell, self._block_named)

    @no_var_expand
    @needs_local_scope
    @output_can_be_silenced
    @line_cell_magic
    def energy(self, line: str, cell: str | None = None, local_ns: Any = None) -> Any:
        """Measure the energy of a cell, or of one statement, and show which layer used it.

        ::

          %%energy [options]           first line of a cell; its value stays the cell's value
          %energy [options] statement  one line; gives the statement's value
          %energy                      the latest run again
          %energy [options] on         measure every cell from now on, until %energy off
          %energy history              the runs of this notebook

        Options::

          -o NAME          keep the result under this name, also after an exception or an interrupt
          -q, --quiet      show no report
          --no-live        show the report at the end only, nothing while the cell runs
          --region REGION  where the electricity comes from: FRA, USA/california, CAN-QC
          --intensity G    your own number for the grid, in gCO2e/kWh
          --market G       gCO2e/kWh of your electricity contract, for a second total beside the first
          --facility SITE  a site that publishes its PUE, such as scaleway/fr-par-2
          --pue X          facility energy over IT energy, at least 1 (grams only)
          --factors FILE   your own factors, your hours of the grid, or an Electricity Maps history file
          --allow-expired  apply factors outside of their dates, and say so in their rows
          --csv DIR        write the audit tables into a folder; where it holds a run, into DIR-2 beside it
          --overwrite      replace the bundle that DIR holds, and nothing else
          --html FILE      write the report as one page, over an older one
          --keep           keep the run in your store; see `torchwatt runs`
          --project NAME   under which project it is kept
          --layers on|off  off: meter only
          --name NAME      shown in the report

        Quote a value with blanks: --csv "my run". Write -- before a statement that begins with a minus.

        Copy, paste, run::

          %%energy -o run --region FRA
          import torch
          model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
          for _ in range(200):
              model(torch.randn(64, 512)).sum().backward()

        Then ``run.energy_j``, ``run.layers``, ``run.samples`` and ``run.to_csv("audit")``.
        """
        __tracebackhide__ = True
        asked, rest = parse(line)
        if cell is None:
            if not rest:
                return self._again(asked)
            if rest.strip() in WORDS:
                return self._word(rest.strip(), asked)
            code = statement_code(self.shell, rest)
        else:
            code = self._cell_code(rest, cell)
        if code.waits:
            raise UsageError("await works on the lines under %%energy, when %%energy is the first line of the cell")
        with self._block(asked, rest):
            return code.run(self.shell.user_ns, local_ns)

    @no_var_expand
    @cell_magic(ASYNC_MAGIC)  # type: ignore[arg-type]
    async def energy_async(self, line: str, cell: str) -> Any:
        """Measure a cell that awaits; `%%energy` becomes this one by itself."""
        __tracebackhide__ = True
        asked, rest = parse(line)
        code = self._cell_code(rest, cell)
        with self._block(asked):
            value = await code.run_async(self.shell.user_ns)
        # `output_can_be_silenced` would drop the coroutine before it ran.
        return None if DisplayHook.semicolon_at_end_of_expression(cell) else value  # type: ignore[no-untyped-call]

    def _cell_code(self, rest: str, cell: str) -> Code:
        if rest:
            raise UsageError(f"only options may follow %%energy on its line: put {rest!r} on the next one")
        return cell_code(self.shell, cell)

    def _block(self, asked: Asked, statement: str = "") -> Block:
        """Return the block of a cell, or of a statement: the two are told apart where one runs inside the other."""
        cell = f"In [{cell_number(self.shell)}]"
        return self._block_named(asked, f"{cell}: {shorten(statement, _MAX_NAME)}" if statement else cell)

    def _block_named(self, asked: Asked, name: str) -> Block:
        def keep(run: Run) -> None:
            self._latest = run
            if asked.output is not None:
                self.shell.user_ns[asked.output] = run

        return Block(asked, name, keep)

    def _word(self, word: str, asked: Asked) -> History | None:
        if word != "on" and not asked.nothing:
            raise UsageError(f"%energy {word} takes no options")
        if word == "history":
            return channel().history
        self.auto.on(asked) if word == "on" else self.auto.off()
        return None

    def _again(self, asked: Asked) -> Run:
        if not asked.nothing:
            raise UsageError("options, but nothing to measure: add a statement, or use %%energy above the lines")
        if self._latest is None:
            raise UsageError("nothing was measured yet: write %%energy as the first line of a cell and run it")
        return self._latest


def load(shell: Shell) -> None:
    """Register the magics, the `await` hook and the completion; a second call replaces the first."""
    unload(shell)
    shell.register_magics(EnergyMagics(shell))
    shell.input_transformers_post.append(AwaitHook(shell))
    completing.add(shell)


def unload(shell: Shell) -> None:
    """Remove everything that `load` added."""
    manager = shell.magics_manager
    loaded = manager.registry.get(EnergyMagics.__name__)
    if isinstance(loaded, EnergyMagics):
        loaded.auto.off()
    channel().close()
    for kind, name in (("line", MAGIC), ("cell", MAGIC), ("cell", ASYNC_MAGIC)):
        manager.magics[kind].pop(name, None)
    manager.registry.pop(EnergyMagics.__name__, None)
    hooks = shell.input_transformers_post
    hooks[:] = [hook for hook in hooks if not isinstance(hook, AwaitHook)]
    completing.remove(shell)
