"""Parses the command line and calls the function of a command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchwatt.cli import attribute_command, fleet_command, report_commands
from torchwatt.cli.report_outputs import TOKEN_VARIABLE, add_output_options
from torchwatt.core.errors import TorchwattError
from torchwatt.core.plain_text import escape_unprintable_lines, replace_unencodable
from torchwatt.core.version import __version__

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

USAGE_ERROR = 2
SWITCHES = frozenset(
    {"-m", "-q", "--quiet", "-h", "--help", "--keep", "--no-journal", "--overwrite", "--shared", "--allow-expired"}
)  # options of `run` that take no value
MAX_ERROR_CHARS = 4000  # characters


class PlainParser(argparse.ArgumentParser):
    """A parser that prints visible characters only: arguments may be names of files that others chose."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        super()._print_message(escape_unprintable_lines(message), file)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser: argparse.ArgumentParser = PlainParser(
        prog="torchwatt", description="Measure the energy of PyTorch runs, and attribute it to layers."
    )
    parser.add_argument("--version", action="version", version=f"torchwatt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_ = commands.add_parser("run", help="run an unmodified script under the profiler")
    _add_measurement_options(run_)
    run_.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module name, as in `python -m`")
    run_.add_argument("-q", "--quiet", action="store_true", help="print no report")
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
    doctor = commands.add_parser("doctor", help="list the meters of this machine, missing ones, and how to fix them")
    doctor.add_argument("--json", action="store_true", help="print JSON, for a bug report")
    show = commands.add_parser("show", help="print the report of a bundle, or of a saved run")
    show.add_argument("directory", metavar="DIR|RUN", help="a bundle, or a saved run by its id or name")
    _add_store_options(show)
    show.add_argument("--all", action="store_true", help="print every layer")
    calibrate = commands.add_parser("calibrate", help="measure the response of a GPU's power sensor, and save it")
    calibrate.add_argument("--device", default="gpu:0", help="the device as named in reports; default gpu:0")
    calibrate.add_argument("--seconds", type=float, default=25.0, help="duration of the load; default 25")
    attribute_command.add_attribute_parser(commands)
    _add_carbon_options(report_commands.add_merge_parser(commands))
    report_commands.add_recover_parser(commands)
    verify = commands.add_parser("verify", help="check a bundle by recomputing every value in it")
    verify.add_argument("directory", metavar="DIR")
    verify.add_argument(
        "--chain",
        metavar="FILE",
        help="the project's chain: check that it contains this run, and that no run was removed",
    )
    verify.add_argument("--runs", metavar="DIR", help="the folder that must contain every bundle of the chain")
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
    demo = commands.add_parser("demo", help="train a small CNN on handwritten digits and print its energy report")
    _add_measurement_options(demo)
    demo.add_argument("--epochs", type=int, default=12)
    _add_bundle_commands(commands)
    fleet_command.add_fleet_parser(commands)
    return parser


def _add_bundle_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that read finished bundles."""
    again = commands.add_parser(
        "reprice", help="compute impacts with other factors: a copy of a bundle with one more scenario"
    )
    again.add_argument("directory", metavar="DIR", help="the bundle, which is not changed")
    again.add_argument(
        "--scenario", help="name of the new impacts; default: the name of the factors' file, or today's date"
    )
    again.add_argument("--to", metavar="NEWDIR", help="the new bundle; default: DIR.SCENARIO")
    again.add_argument("--chain", metavar="FILE", help="add the new bundle to this chain")
    again.add_argument(
        "--electricity-maps",
        metavar="ZONE",
        help="NETWORK: fetch the hours of the run in this zone from Electricity Maps; the token is read from "
        f"{TOKEN_VARIABLE}",
    )
    again.add_argument("--electricity-maps-url", metavar="URL", help="another address of the Electricity Maps API")
    _add_carbon_options(again)
    out = commands.add_parser("export", help="write a bundle in another tool's format")
    out.add_argument("directories", metavar="DIR", nargs="+")
    out.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="perfetto, codecarbon, boamps, huggingface, sci, ai-act, xlsx, parquet",
    )
    out.add_argument("--out", metavar="PATH", help="the new file; default: the format's usual name, here")
    out.add_argument("--scenario", default="as_run", help="scenario of the impacts: as_run, or repriced:NAME")
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
    run_list.add_argument("--rebuild", action="store_true", help="rebuild the index from the bundles")


def _add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="DIR", help="the store; default TORCHWATT_STORE, or your data folder")
    parser.add_argument("--project", help="only this project")


def _add_carbon_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--region", help="region of the electricity grid, such as FRA or USA/california")
    parser.add_argument(
        "--intensity",
        type=float,
        metavar="G_PER_KWH",
        help="carbon intensity of the grid in gCO2e/kWh, instead of a region's",
    )
    parser.add_argument("--market", type=float, metavar="G_PER_KWH", help="gCO2e/kWh of your electricity contract")
    parser.add_argument("--facility", metavar="SITE", help="a site with published PUE, such as scaleway/fr-par-2")
    parser.add_argument("--pue", type=float, help="facility energy over IT energy")
    parser.add_argument(
        "--price-per-kwh", metavar="PRICE", help="price of electricity with its currency, such as '0.32 EUR'"
    )
    parser.add_argument(
        "--factors",
        action="append",
        metavar="FILE",
        help="a file of factors, of hourly grid values, or of Electricity Maps history",
    )
    parser.add_argument(
        "--allow-expired", action="store_true", help="apply factors outside of their dates; their rows are marked"
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
