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
from IPython.display import display

from torchwatt.notebook import magic_options
from torchwatt.notebook.cell_compiler import ASYNC_MAGIC, MAGIC, AwaitHook, CellCode, compile_cell, compile_statement
from torchwatt.notebook.frontend import Shell, cell_number
from torchwatt.notebook.magic_options import MagicArguments, parse_magic
from torchwatt.notebook.measured_cell import AutomaticMeasurement, MeasuredBlock
from torchwatt.notebook.run_history import RunHistory, history_channel

if TYPE_CHECKING:
    from torchwatt.session import Run

SUBCOMMANDS = ("on", "off", "history")
_MAX_STATEMENT_CHARS = 60  # characters of a statement, in the name of its run


@magics_class
class EnergyMagics(Magics):
    """The line and cell magic `energy`, and its async form, which only `AwaitHook` calls."""

    shell: Shell

    def __init__(self, shell: Shell) -> None:
        super().__init__(shell)
        self._latest: Run | None = None
        self.auto = AutomaticMeasurement(shell, self._make_block)

    @no_var_expand
    @needs_local_scope
    @output_can_be_silenced
    @line_cell_magic
    def energy(self, line: str, cell: str | None = None, local_ns: Any = None) -> Any:
        """Measure the energy of a cell, or of one statement, and attribute it to layers.

        ::

          %%energy [options]           measure a cell, as its first line; returns the cell's value
          %energy [options] statement  measure one line; returns the statement's value
          %energy                      show the latest run again
          %energy [options] on         measure every following cell, until %energy off
          %energy history              the runs of this notebook

        Options::

          -o NAME          assign the result to this name, also after an exception or an interrupt
          -q, --quiet      show no report
          --no-live        show the report at the end only, nothing while the cell runs
          --region REGION  region of the electricity grid: FRA, USA/california, CAN-QC
          --intensity G    carbon intensity of the grid in gCO2e/kWh, instead of a region's
          --market G       gCO2e/kWh of your electricity contract, for a market-based total
          --facility SITE  a site with published PUE, such as scaleway/fr-par-2
          --pue X          facility energy over IT energy, at least 1 (for grams and cost)
          --factors FILE   a file of factors, of hourly grid values, or of Electricity Maps history
          --allow-expired  apply factors outside of their dates; their rows are marked
          --price-per-kwh '0.32 EUR'  price of electricity with its currency, for the cost of the run
          --csv DIR        write the audit tables into a folder; if it is not empty, into DIR-2 beside it
          --overwrite      replace the bundle at DIR; anything else is never replaced
          --html FILE      write the report as one page, replacing an older one
          --keep           save the run in your store; see `torchwatt runs`
          --project NAME   project of the run in the store
          --layers on|off  off: measure energy without layers
          --name NAME      shown in the report

        Quote a value with blanks: --csv "my run". Write -- before a statement that starts with a minus.

        Copy, paste, run::

          %%energy -o run --region FRA
          import torch
          model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
          for _ in range(200):
              model(torch.randn(64, 512)).sum().backward()

        Then ``run.energy_j``, ``run.layers``, ``run.samples`` and ``run.to_csv("audit")``.
        """
        __tracebackhide__ = True
        arguments, statement = parse_magic(line)
        if cell is None:
            if not statement:
                return self._again(arguments)
            if statement.strip() in SUBCOMMANDS:
                return self._word(statement.strip(), arguments)
            code = compile_statement(self.shell, statement)
        else:
            code = self._cell_code(statement, cell)
        if code.waits:
            raise UsageError("await works on the lines under %%energy, when %%energy is the first line of the cell")
        with self._block(arguments, statement):
            return code.run(self.shell.user_ns, local_ns)

    @no_var_expand
    @cell_magic(ASYNC_MAGIC)  # type: ignore[arg-type]
    async def energy_async(self, line: str, cell: str) -> Any:
        """Measure a cell with top-level `await`; `AwaitHook` replaces `%%energy` by this magic."""
        __tracebackhide__ = True
        arguments, statement = parse_magic(line)
        code = self._cell_code(statement, cell)
        with self._block(arguments):
            value = await code.run_async(self.shell.user_ns)
        # `output_can_be_silenced` would discard the coroutine before it ran.
        return None if DisplayHook.semicolon_at_end_of_expression(cell) else value  # type: ignore[no-untyped-call]

    def _cell_code(self, statement: str, cell: str) -> CellCode:
        if statement:
            raise UsageError(f"only options may follow %%energy on its line: put {statement!r} on the next one")
        return compile_cell(self.shell, cell)

    def _block(self, arguments: MagicArguments, statement: str = "") -> MeasuredBlock:
        """Return the block of a cell, or of a statement, whose text is then part of the run's name."""
        cell = f"In [{cell_number(self.shell)}]"
        return self._make_block(arguments, f"{cell}: {shorten(statement, _MAX_STATEMENT_CHARS)}" if statement else cell)

    def _make_block(self, arguments: MagicArguments, name: str) -> MeasuredBlock:
        def keep(run: Run) -> None:
            self._latest = run
            if arguments.output is not None:
                self.shell.user_ns[arguments.output] = run

        return MeasuredBlock(arguments, name, keep)

    def _word(self, word: str, arguments: MagicArguments) -> RunHistory | None:
        if word != "on" and not arguments.nothing:
            raise UsageError(f"%energy {word} takes no options")
        if word == "history":
            return history_channel().history
        self.auto.on(arguments) if word == "on" else self.auto.off()
        text = "Every following cell is measured, until %energy off." if word == "on" else "Cells are not measured."
        display({"text/plain": text}, raw=True)  # type: ignore[no-untyped-call]
        return None

    def _again(self, arguments: MagicArguments) -> Run:
        if not arguments.nothing:
            raise UsageError("options, but nothing to measure: add a statement, or use %%energy above the lines")
        if self._latest is None:
            raise UsageError("nothing was measured yet: write %%energy as the first line of a cell and run it")
        return self._latest


def load_magics(shell: Shell) -> None:
    """Register the magics, the `await` hook and the completion; a second call replaces the first."""
    unload_magics(shell)
    shell.register_magics(EnergyMagics(shell))
    shell.input_transformers_post.append(AwaitHook(shell))
    magic_options.add_completion(shell)


def unload_magics(shell: Shell) -> None:
    """Remove everything that `load` added."""
    manager = shell.magics_manager
    loaded = manager.registry.get(EnergyMagics.__name__)
    if isinstance(loaded, EnergyMagics):
        loaded.auto.off()
    history_channel().close()
    for kind, name in (("line", MAGIC), ("cell", MAGIC), ("cell", ASYNC_MAGIC)):
        manager.magics[kind].pop(name, None)
    manager.registry.pop(EnergyMagics.__name__, None)
    hooks = shell.input_transformers_post
    hooks[:] = [hook for hook in hooks if not isinstance(hook, AwaitHook)]
    magic_options.remove_completion(shell)
