"""A process of `workers`: reads lines of bundles and writes lines of outcomes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torchwatt.audit.fleet.lake import Lake, LocalFiles
from torchwatt.audit.fleet.one import Found, How, add_one


def work(root: Path, options: How) -> None:
    """Add the bundles that standard input lists, until its end."""
    lake = Lake(str(root), LocalFiles(root, options.shared))
    present = lake.runs()
    for line in sys.stdin:
        outcomes = [add_one(lake, Found(**bundle), present, options) for bundle in json.loads(line)]
        sys.stdout.write(json.dumps([asdict(outcome) for outcome in outcomes]) + "\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Run the worker; the arguments are the lake's folder and the options of the ingest as JSON."""
    work(Path(arguments[0]), How(**json.loads(arguments[1])))
