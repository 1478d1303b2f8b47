"""Parses the command line and calls the function of a command."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

from torchwatt.cli import attribute_command, fleet_command, report_commands
from torchwatt.cli.report_commands import TOKEN_VARIABLE, add_output_options
from torchwatt.core import __version__
from torchwatt.core.errors import TorchwattError
from torchwatt.core.plain_text import escape_unprintable_lines, replace_unencodable
from torchwatt.views.layer_groups import VIEWS

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

USAGE_ERROR = 2
SWITCHES = frozenset(
    {
        "-m",
        "-q",
        "--quiet",
        "--live",
        "-h",
        "--help",
        "--keep",
        "--no-journal",
        "--overwrite",
        "--shared",
        "--allow-expired",
    }
)  # options of `run` that take no value
MAX_ERROR_CHARS = 4000  # characters


class PlainParser(argparse.ArgumentParser):
    """A parser whose errors are one line; it prints visible characters only, since arguments may be untrusted names."""

    def error(self, message: str) -> NoReturn:
        """Print a wrong argument as one line, with similar names, and exit with status 2."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown is not None:
            names = [name for parser in self._all_parsers() for name in parser._option_string_actions]
            message = f"unknown option {unknown[1]}{_did_you_mean(unknown[1], names)}"
        end = " See" if message.endswith("?") else "; see"
        self.exit(USAGE_ERROR, f"{self.prog}: {message}{end} `{self.prog} --help`\n")

    def _all_parsers(self) -> Iterator[argparse.ArgumentParser]:
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            near = _did_you_mean(str(value), choices) or f": give one of {', '.join(choices)}"
            raise argparse.ArgumentError(None if action.dest == "command" else action, f"no {value!r}{near}")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        super()._print_message(escape_unprintable_lines(message), file)


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the names that differ by few letters, as the end of a message; "" if no name does."""
    near = get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.6)
    return f": did you mean {' or '.join(near)}?" if near else ""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser: argparse.ArgumentParser = PlainParser(
        prog="torchwatt", description="Measure how much energy a PyTorch program uses, and which layers use it."
    )
    parser.add_argument("--version", action="version", version=f"torchwatt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_ = commands.add_parser("run", help="run a script and report its energy; the script needs no changes")
    _add_measurement_options(run_)
    run_.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module name, as in `python -m`")
    run_.add_argument("-q", "--quiet", action="store_true", help="print no report")
    run_.add_argument(
        "--live",
        action="store_true",
        help="show the run in the terminal's last row; nothing where stderr is no terminal",
    )
    report_commands.add_journal_options(run_)
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
        help="a host name accepted in requests of Prometheus; default: this machine's addresses, and localhost",
    )
    run_.add_argument("script", metavar="SCRIPT", help="the script to run")
    run_.add_argument("args", nargs="*", metavar="ARGS", help="the script's arguments, passed unchanged")
    doctor = commands.add_parser("doctor", help="say what can be measured on this machine, and what would help")
    doctor.add_argument("--json", action="store_true", help="print JSON, for a bug report")
    show = commands.add_parser("show", help="print the report of a saved run")
    show.add_argument("directory", metavar="DIR|RUN", help="the folder of a run, or the id or name of a saved run")
    _add_store_options(show)
    show.add_argument(
        "--by",
        choices=VIEWS,
        help="the view of the layers: each module (hottest), repeated blocks folded (blocks), modules inside modules "
        "(tree) or kinds of modules (type); default: blocks if the model repeats blocks, else hottest",
    )
    show.add_argument("--all", action="store_true", help="print every row; without --by, every layer")
    show.add_argument("--markdown", action="store_true", help="print Markdown")
    show.add_argument("--html", metavar="FILE", help="write the report as one HTML page instead of printing it")
    calibrate = commands.add_parser("calibrate", help="measure how a GPU's power sensor averages and delays")
    calibrate.add_argument("--device", default="gpu:0", help="the device as named in reports; default gpu:0")
    calibrate.add_argument("--seconds", type=float, default=25.0, help="duration of the load; default 25")
    attribute_command.add_attribute_parser(commands)
    _add_carbon_options(report_commands.add_merge_parser(commands))
    report_commands.add_recover_parser(commands)
    _add_carbon_options(report_commands.add_watch_parser(commands))
    verify = commands.add_parser("verify", help="check the files of a run: recompute what follows from other values")
    verify.add_argument("directory", metavar="DIR", help="the folder of a run")
    verify.add_argument(
        "--chain",
        metavar="FILE",
        help="the project's chain: check that it contains this run, and that no run was removed",
    )
    verify.add_argument("--runs", metavar="DIR", help="the folder that must contain every run of the chain")
    verify.add_argument(
        "--allowed-signers", metavar="FILE", help="OpenSSH's file of allowed keys, which identifies the signer"
    )
    verify.add_argument(
        "--require-signature", metavar="KEY", help="exit with 1 unless this key signed: its .pub file, or SHA256:..."
    )
    verify.add_argument(
        "--require-chain",
        metavar="HEAD",
        help="exit with 1 unless --chain contains this head, which you stored elsewhere",
    )
    demo = commands.add_parser("demo", help="train a small network on handwritten digits and report its energy")
    _add_measurement_options(demo)
    demo.add_argument("--epochs", type=int, default=12)
    _add_bundle_commands(commands)
    fleet_command.add_fleet_parser(commands)
    return parser


def _add_bundle_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that read finished bundles."""
    again = commands.add_parser(
        "reprice", help="compute the grams again with other carbon numbers, in a copy of a run's files"
    )
    again.add_argument("directory", metavar="DIR", help="the folder of a run, which is not changed")
    again.add_argument(
        "--scenario", help="name of the new numbers; default: the name of the factors' file, or today's date"
    )
    again.add_argument("--to", metavar="NEWDIR", help="the folder to make; default: DIR.SCENARIO")
    again.add_argument("--chain", metavar="FILE", help="add the new files to this chain")
    again.add_argument(
        "--electricity-maps",
        metavar="ZONE",
        help="NETWORK: fetch the hours of the run in this zone from Electricity Maps; the token is read from "
        f"{TOKEN_VARIABLE}",
    )
    again.add_argument("--electricity-maps-url", metavar="URL", help="another address of the Electricity Maps API")
    _add_carbon_options(again)
    out = commands.add_parser("export", help="write a run in another tool's format")
    out.add_argument("directories", metavar="DIR", nargs="+", help="the folders of runs")
    out.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="perfetto, codecarbon, boamps, huggingface, sci, sci-ai, ai-act, spdx, cyclonedx, xlsx, parquet",
    )
    out.add_argument(
        "--training",
        metavar="NAME",
        help="with sci-ai and ai-act: DIR holds many runs; take all that have this name, project or parent_run_id, "
        "also partial and aborted ones",
    )
    out.add_argument("--out", metavar="PATH", help="the new file; default: the format's usual name, here")
    out.add_argument("--scenario", default="as_run", help="which carbon numbers: as_run, or repriced:NAME")
    out.add_argument(
        "--set",
        dest="pairs",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="declare a value that cannot be measured",
    )
    run_list = commands.add_parser("runs", help="list saved runs, and their sums by project and month")
    _add_store_options(run_list)
    run_list.add_argument("--month", metavar="YYYY-MM", help="only this month (UTC)")
    run_list.add_argument("--rebuild", action="store_true", help="rebuild the index from the files of the runs")


def _add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="DIR", help="the store; default TORCHWATT_STORE, or your data folder")
    parser.add_argument("--project", help="only this project")


def _add_carbon_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--region",
        help="where the electricity comes from: a country (FRA, France), a state (USA/california) or a "
        "cloud's region (eu-west-3); without it no grams",
    )
    parser.add_argument(
        "--intensity",
        type=float,
        metavar="G_PER_KWH",
        help="carbon intensity of the grid in gCO2e/kWh, instead of a region's",
    )
    parser.add_argument("--market", type=float, metavar="G_PER_KWH", help="gCO2e/kWh of your electricity contract")
    parser.add_argument("--facility", metavar="SITE", help="a site with published PUE, such as scaleway/fr-par-2")
    parser.add_argument("--pue", type=float, help="energy of the whole building over that of its computers (PUE)")
    parser.add_argument(
        "--price-per-kwh", metavar="PRICE", help="price of electricity with its currency, such as '0.32 EUR'"
    )
    parser.add_argument(
        "--factors",
        action="append",
        metavar="FILE",
        help="a file of carbon numbers, of hourly grid values, or of Electricity Maps history",
    )
    parser.add_argument(
        "--allow-expired", action="store_true", help="use carbon numbers outside of their dates; their rows are marked"
    )


def _add_measurement_options(parser: argparse.ArgumentParser) -> None:
    _add_carbon_options(parser)
    parser.add_argument("--keep", action="store_true", help="save the run in the store; see `torchwatt runs`")
    parser.add_argument("--store", metavar="DIR", help="the store; default TORCHWATT_STORE, or your data folder")
    parser.add_argument("--project", help="project of the run in the store; default: default")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="give the saved files the umask's permissions; default: only you can read them",
    )
    add_output_options(parser)
    parser.add_argument("--layers", choices=["on", "off"], default="on", help="off: measure energy without layers")


def _split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split `run [OPTIONS] SCRIPT ARGS` after SCRIPT; the second part belongs to the script, a `--` included."""
    if argv[:1] != ["run"]:
        return argv, []
    at = 1
    while at < len(argv) and argv[at].startswith("-") and argv[at] not in {"-", "--"}:
        at += 1 if argv[at] in SWITCHES or "=" in argv[at] else 2
    at += argv[at : at + 1] == ["--"]
    return argv[: at + 1], argv[at + 1 :]


def _run_options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options of `torchwatt run`."""
    commands = next(action for action in parser._actions if action.dest == "command").choices
    assert isinstance(commands, dict)  # noqa: S101  of sub-commands
    return [name for action in commands["run"]._actions for name in action.option_strings if name.startswith("--")]


def run_command(argv: Sequence[str]) -> int:
    """Parse and execute a command line; torchwatt's own errors are printed as one line, with exit status 2."""
    from torchwatt.cli import command_table
    from torchwatt.cli.script_runner import RefusedRunError

    parser = build_parser()
    ours, scripts = _split_arguments(list(argv))
    if ours[:1] != ["run"]:  # a script configures its own stdout
        replace_unencodable(sys.stdout)
    arguments = parser.parse_args(ours)
    if arguments.command == "run":
        arguments.args, arguments.run_options = scripts, _run_options(parser)
    try:
        return command_table.COMMANDS[arguments.command](arguments)
    except BrokenPipeError:  # the reader of the pipe closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TorchwattError, RefusedRunError) as error:
        _print_error(str(error))
    except OSError as error:  # of a path in the arguments; errors of a script do not reach this
        where = f"{error.filename}: " if error.filename is not None else ""
        _print_error(f"{where}{error.strerror or error}")
    return USAGE_ERROR


def _print_error(text: str) -> None:
    """Print an error to stderr; names in it may come from untrusted files."""
    print(f"torchwatt: {escape_unprintable_lines(text[:MAX_ERROR_CHARS])}", file=sys.stderr)
