"""Arguments of the command line, and which function answers them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchwatt.cli import attribute, fleet, merge, recover
from torchwatt.cli.outputs import add_outputs
from torchwatt.core.errors import TorchwattError
from torchwatt.core.plain_text import let_print, printable_lines
from torchwatt.core.version import __version__

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

USAGE_ERROR = 2
FLAGS = frozenset(
    {"-m", "-q", "--quiet", "-h", "--help", "--keep", "--no-journal", "--overwrite", "--shared", "--allow-expired"}
)  # options of `run` that take no value
LONGEST_ERROR = 4000  # characters
TOKEN = "ELECTRICITYMAPS_TOKEN"  # noqa: S105  # the variable's name


class PlainParser(argparse.ArgumentParser):
    """A parser that prints visible characters only: arguments may be names of files that others chose."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        super()._print_message(printable_lines(message), file)


def build() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser: argparse.ArgumentParser = PlainParser(prog="torchwatt", description="Where the joules of a PyTorch run go.")
    parser.add_argument("--version", action="version", version=f"torchwatt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_ = commands.add_parser("run", help="run an unmodified script under the profiler")
    _measuring(run_)
    run_.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module name, as in `python -m`")
    run_.add_argument("-q", "--quiet", action="store_true", help="print no report")
    recover.add_journal(run_)
    run_.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="WHERE",
        help="live metrics: prometheus:PORT (this machine only), prometheus:ADDRESS:PORT, textfile:FILE.prom, otel",
    )
    run_.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this machine under which Prometheus asks; default: its addresses, and localhost here",
    )
    run_.add_argument("script", metavar="SCRIPT", help="the script to run")
    run_.add_argument("args", nargs="*", metavar="ARGS", help="its arguments, passed on as they are")
    doctor = commands.add_parser("doctor", help="what can be metered here, what cannot, and how to fix it")
    doctor.add_argument("--json", action="store_true", help="all of it as JSON, for a bug report")
    show = commands.add_parser("show", help="print the report of a bundle, or of a run that was kept")
    show.add_argument("directory", metavar="DIR|RUN", help="a bundle, or a kept run by its id or name")
    _in_store(show)
    show.add_argument("--all", action="store_true", help="every layer")
    calibrate = commands.add_parser("calibrate", help="find out what a GPU's power sensor does to power, and keep it")
    calibrate.add_argument("--device", default="gpu:0", help="as in reports; default gpu:0")
    calibrate.add_argument("--seconds", type=float, default=25.0, help="how long to drive it; default 25")
    attribute.add_parser(commands)
    _carbon(merge.add_parser(commands))
    recover.add_parser(commands)
    verify = commands.add_parser("verify", help="check a bundle: compute every number of it again")
    verify.add_argument("directory", metavar="DIR")
    verify.add_argument("--chain", metavar="FILE", help="the project's chain: is this run in it, was none removed?")
    verify.add_argument("--runs", metavar="DIR", help="the folder that should hold every bundle of the chain")
    verify.add_argument("--allowed-signers", metavar="FILE", help="OpenSSH's list of keys: who signed?")
    verify.add_argument(
        "--require-signature", metavar="KEY", help="exit status 1 unless this key signed: its .pub file, or SHA256:..."
    )
    verify.add_argument(
        "--require-chain", metavar="HEAD", help="exit status 1 unless --chain holds this head, which was kept elsewhere"
    )
    demo = commands.add_parser("demo", help="train a small CNN on real digits and see where its joules went")
    _measuring(demo)
    demo.add_argument("--epochs", type=int, default=12)
    _on_bundles(commands)
    fleet.add_parser(commands)
    return parser


def _on_bundles(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that read finished bundles."""
    again = commands.add_parser("reprice", help="new grams for old joules: a copy of a bundle with more impacts")
    again.add_argument("directory", metavar="DIR", help="the bundle; it stays as it is")
    again.add_argument("--scenario", help="what to call the new impacts; default: the file's name or today's date")
    again.add_argument("--to", metavar="NEWDIR", help="the new bundle; default: DIR.SCENARIO")
    again.add_argument("--chain", metavar="FILE", help="add the new bundle to this chain")
    again.add_argument(
        "--electricity-maps",
        metavar="ZONE",
        help=f"NETWORK: ask Electricity Maps for the hours of the run in this zone; the token is read from {TOKEN}",
    )
    again.add_argument("--electricity-maps-url", metavar="URL", help="another address of that API")
    _carbon(again)
    out = commands.add_parser("export", help="write a bundle in another tool's format")
    out.add_argument("directories", metavar="DIR", nargs="+")
    out.add_argument("--to", required=True, metavar="FORMAT", help="codecarbon, boamps, huggingface, sci, ai-act, ...")
    out.add_argument("--out", metavar="PATH", help="the new file; default: the format's usual name, here")
    out.add_argument("--scenario", default="as_run", help="whose grams: as_run, or repriced:NAME")
    out.add_argument(
        "--set", dest="pairs", action="append", default=[], metavar="NAME=VALUE", help="declare what no meter knows"
    )
    kept = commands.add_parser("runs", help="runs that were kept, and their sums by project and month")
    _in_store(kept)
    kept.add_argument("--month", metavar="YYYY-MM", help="only this month (UTC)")
    kept.add_argument("--rebuild", action="store_true", help="make the index again from the bundles")


def _in_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", metavar="DIR", help="where runs are kept; default TORCHWATT_STORE, or your data folder"
    )
    parser.add_argument("--project", help="only this project")


def _carbon(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--region", help="where the electricity comes from, such as FRA or USA/california")
    parser.add_argument("--intensity", type=float, metavar="G_PER_KWH", help="your own gCO2e/kWh")
    parser.add_argument("--market", type=float, metavar="G_PER_KWH", help="gCO2e/kWh of your electricity contract")
    parser.add_argument("--facility", metavar="SITE", help="a site that publishes its PUE, such as scaleway/fr-par-2")
    parser.add_argument("--pue", type=float, help="facility energy over IT energy")
    parser.add_argument(
        "--factors",
        action="append",
        metavar="FILE",
        help="your factors, your hours of the grid, or an Electricity Maps history file",
    )
    parser.add_argument(
        "--allow-expired", action="store_true", help="apply factors outside of their dates, and say so in their rows"
    )


def _measuring(parser: argparse.ArgumentParser) -> None:
    _carbon(parser)
    parser.add_argument("--keep", action="store_true", help="keep the run in the store; see `torchwatt runs`")
    parser.add_argument("--store", metavar="DIR", help="where to keep it; default TORCHWATT_STORE, or your data folder")
    parser.add_argument("--project", help="under which project; default: default")
    parser.add_argument("--shared", action="store_true", help="others may read the kept run, as the umask allows")
    add_outputs(parser)
    parser.add_argument("--layers", choices=["on", "off"], default="on", help="off: meter only")


def _cut(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split `run [OPTIONS] SCRIPT ARGS` after SCRIPT: what follows is the script's, `--` and all."""
    if argv[:1] != ["run"]:
        return argv, []
    at = 1
    while at < len(argv) and argv[at].startswith("-") and argv[at] not in {"-", "--"}:
        at += 1 if argv[at] in FLAGS or "=" in argv[at] else 2
    at += argv[at : at + 1] == ["--"]
    return argv[: at + 1], argv[at + 1 :]


def _options_of_run(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options of `torchwatt run`."""
    commands = next(action for action in parser._actions if action.dest == "command").choices
    assert isinstance(commands, dict)  # noqa: S101  of sub-commands
    return [name for action in commands["run"]._actions for name in action.option_strings if name.startswith("--")]


def run(argv: Sequence[str]) -> int:
    """Parse and execute; errors of ours become one line on stderr and exit code 2."""
    from torchwatt.cli import commands
    from torchwatt.cli.script import Refused

    parser = build()
    ours, scripts = _cut(list(argv))
    if ours[:1] != ["run"]:  # the stdout of a script is its own
        let_print(sys.stdout)
    asked = parser.parse_args(ours)
    if asked.command == "run":
        asked.args, asked.known = scripts, _options_of_run(parser)
    try:
        return commands.COMMANDS[asked.command](asked)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TorchwattError, Refused) as error:
        _say(str(error))
    except OSError as error:  # of a path that was named; what a script raises never comes here
        where = f"{error.filename}: " if error.filename is not None else ""
        _say(f"{where}{error.strerror or error}")
    return USAGE_ERROR


def _say(text: str) -> None:
    """Print an error as one line or more; names in it come from files of anybody."""
    print(f"torchwatt: {printable_lines(text[:LONGEST_ERROR])}", file=sys.stderr)
