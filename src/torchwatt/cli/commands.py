"""One function per command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchwatt.audit.store import Store, default_store
from torchwatt.carbon import Asked
from torchwatt.cli.attribute import attribute
from torchwatt.cli.doctor import doctor
from torchwatt.cli.export import export_bundles
from torchwatt.cli.fleet import fleet
from torchwatt.cli.merge import run_merge
from torchwatt.cli.recover import recover
from torchwatt.cli.reprice import run_reprice
from torchwatt.cli.runs import runs
from torchwatt.cli.script import run_script
from torchwatt.cli.show import show
from torchwatt.core.errors import ConfigError
from torchwatt.metrics import named

FINDINGS = 1  # the exit code of a bundle that does not hold; 2 is no bundle, or a wrong use


def _options(asked: argparse.Namespace) -> dict[str, Any]:
    return {
        **_carbon(asked),
        **_keeping(asked),
        "csv": asked.csv,
        "html": asked.html,
        "overwrite": asked.overwrite,
        "layers": asked.layers,
    }


def _carbon(asked: argparse.Namespace) -> dict[str, Any]:
    names = ("region", "market", "facility", "pue", "factors", "allow_expired")
    return {name: getattr(asked, name) for name in names} | {"intensity_g_per_kwh": asked.intensity}


def _keeping(asked: argparse.Namespace) -> dict[str, Any]:
    """Return where to keep the run; a store or a project without --keep is a forgotten --keep."""
    if not asked.keep:
        if asked.store or asked.project or asked.shared:
            raise ConfigError("--store, --project and --shared are about a run that is kept: add --keep")
        return {}
    return {"keep": asked.store or default_store(), "project": asked.project}


def _share(asked: argparse.Namespace, files: Sequence[Path]) -> None:
    """Let others read what was kept, where that was asked for."""
    store = Store((Path(asked.store).expanduser() if asked.store else default_store()).absolute())
    for path in files if asked.shared else ():
        if path.parent.parent == store.root:
            store.share(path)


def _run(asked: argparse.Namespace) -> int:
    if asked.allow_host and not any(where.startswith("prometheus:") for where in asked.metrics):
        raise ConfigError("--allow-host says under which names Prometheus asks: give --metrics prometheus:ADDRESS:PORT")
    options = {**_options(asked), "journal": asked.journal or not asked.no_journal}
    return run_script(
        asked.script,
        asked.args,
        module=asked.module,
        quiet=asked.quiet,
        options=options,
        metrics=[partial(named, where, asked.allow_host) for where in asked.metrics],
        written=partial(_share, asked),
        known=asked.known,
    )


def _doctor(asked: argparse.Namespace) -> int:
    return doctor(as_json=asked.json)


def _show(asked: argparse.Namespace) -> int:
    return show(_bundle(asked), everything=asked.all)


def _bundle(asked: argparse.Namespace) -> str:
    """Return the folder that was named, else the kept run of that name."""
    if Path(asked.directory).is_dir():
        return str(asked.directory)
    return str(Store(asked.store).find(asked.directory, asked.project))


def _runs(asked: argparse.Namespace) -> int:
    return runs(Store(asked.store), project=asked.project, month=asked.month, rebuild=asked.rebuild)


def _export(asked: argparse.Namespace) -> int:
    return export_bundles(asked.directories, asked.to, asked.out, asked.pairs, asked.scenario)


def _reprice(asked: argparse.Namespace) -> int:
    return run_reprice(asked, Asked(**_carbon(asked)))


def _verify(asked: argparse.Namespace) -> int:
    from torchwatt.audit import verify

    found = verify(
        asked.directory, chain=asked.chain, runs=asked.runs, allowed_signers=asked.allowed_signers,
        require_signature=asked.require_signature, require_chain=asked.require_chain,
    )  # fmt: skip
    print(found)
    return 0 if found.ok else FINDINGS


def _demo(asked: argparse.Namespace) -> int:
    from torchwatt.cli.demo import demo

    return demo(epochs=asked.epochs, options=_options(asked), out=sys.stdout, written=partial(_share, asked))


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
    "recover": recover,
    "reprice": _reprice,
    "export": _export,
    "runs": _runs,
    "fleet": fleet,
    "merge": lambda asked: run_merge(asked, _carbon(asked)),
}
