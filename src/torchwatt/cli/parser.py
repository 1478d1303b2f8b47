"""Arguments of the command line, and which function answers them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from torchwatt.cli import attribute
from torchwatt.core.errors import TorchwattError
from torchwatt.core.version import __version__

USAGE_ERROR = 2
FLAGS = frozenset({"-m", "-q", "--quiet", "-h", "--help"})  # options of `run` that take no value


def build() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="torchwatt", description="Where the joules of a PyTorch run go.")
    parser.add_argument("--version", action="version", version=f"torchwatt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_ = commands.add_parser("run", help="run an unmodified script under the profiler")
    _measuring(run_)
    run_.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module name, as in `python -m`")
    run_.add_argument("-q", "--quiet", action="store_true", help="print no report")
    run_.add_argument("script", metavar="SCRIPT", help="the script to run")
    run_.add_argument("args", nargs="*", metavar="ARGS", help="its arguments, passed on as they are")
    commands.add_parser("doctor", help="what can be metered here, what cannot, and how to fix it")
    show = commands.add_parser("show", help="print the report of a bundle of CSV files")
    show.add_argument("directory", metavar="DIR")
    show.add_argument("--all", action="store_true", help="every layer")
    calibrate = commands.add_parser("calibrate", help="find out what a GPU's power sensor does to power, and keep it")
    calibrate.add_argument("--device", default="gpu:0", help="as in reports; default gpu:0")
    calibrate.add_argument("--seconds", type=float, default=25.0, help="how long to drive it; default 25")
    attribute.add_parser(commands)
    verify = commands.add_parser("verify", help="check a bundle: compute every number of it again")
    verify.add_argument("directory", metavar="DIR")
    verify.add_argument("--chain", metavar="FILE", help="the project's chain: is this run in it, was none removed?")
    verify.add_argument("--runs", metavar="DIR", help="the folder that should hold every bundle of the chain")
    verify.add_argument("--allowed-signers", metavar="FILE", help="OpenSSH's list of keys: who signed?")
    demo = commands.add_parser("demo", help="train a small CNN on real digits and see where its joules went")
    _measuring(demo)
    demo.add_argument("--epochs", type=int, default=12)
    return parser


def _measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--region", help="where the electricity comes from, such as FRA or USA/california")
    parser.add_argument("--intensity", type=float, metavar="G_PER_KWH", help="your own gCO2e/kWh")
    parser.add_argument("--pue", type=float, help="facility energy over IT energy")
    parser.add_argument("--csv", metavar="DIR", help="write the audit tables into a new folder")
    parser.add_argument("--html", metavar="FILE", help="write the report as one page")
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


def run(argv: Sequence[str]) -> int:
    """Parse and execute; errors of ours become one line on stderr and exit code 2."""
    from torchwatt.cli import commands
    from torchwatt.cli.script import Refused

    parser = build()
    ours, scripts = _cut(list(argv))
    asked = parser.parse_args(ours)
    if asked.command == "run":
        asked.args = scripts
    try:
        return commands.COMMANDS[asked.command](asked)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TorchwattError, Refused) as error:
        if asked.command == "run" and not isinstance(error, Refused):
            raise  # the script's own
        print(f"torchwatt: {error}", file=sys.stderr)
        return USAGE_ERROR
