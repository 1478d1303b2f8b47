"""One function per command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torchwatt.cli.attribute import attribute
from torchwatt.cli.doctor import doctor
from torchwatt.cli.script import run_script
from torchwatt.cli.show import show

FINDINGS = 1  # the exit code of a bundle that does not hold; 2 is no bundle, or a wrong use


def _options(asked: argparse.Namespace) -> dict[str, Any]:
    return {
        "region": asked.region,
        "intensity_g_per_kwh": asked.intensity,
        "pue": asked.pue,
        "csv": asked.csv,
        "html": asked.html,
        "layers": asked.layers,
    }


def _run(asked: argparse.Namespace) -> int:
    return run_script(asked.script, asked.args, module=asked.module, quiet=asked.quiet, options=_options(asked))


def _doctor(_: argparse.Namespace) -> int:
    return doctor()


def _show(asked: argparse.Namespace) -> int:
    return show(asked.directory, everything=asked.all)


def _verify(asked: argparse.Namespace) -> int:
    from torchwatt.audit import verify

    found = verify(asked.directory, chain=asked.chain, runs=asked.runs, allowed_signers=asked.allowed_signers)
    print(found)
    return 0 if found.ok else FINDINGS


def _demo(asked: argparse.Namespace) -> int:
    from torchwatt.cli.demo import demo

    return demo(epochs=asked.epochs, options=_options(asked), out=sys.stdout)


def _calibrate(asked: argparse.Namespace) -> int:
    from torchwatt.cli.calibrate import calibrate_device

    return calibrate_device(asked.device, asked.seconds)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "doctor": _doctor,
    "calibrate": _calibrate,
    "show": _show,
    "verify": _verify,
    "demo": _demo,
    "attribute": attribute,
}
