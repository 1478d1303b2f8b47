"""The table of commands: one function each, from parsed arguments to the exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchwatt.audit.store import Store, default_store
from torchwatt.carbon import CarbonOptions
from torchwatt.cli.attribute_command import run_attribute
from torchwatt.cli.bundle_commands import export_bundles, list_runs, run_reprice, show_bundle
from torchwatt.cli.doctor import print_discovery
from torchwatt.cli.fleet_command import run_fleet
from torchwatt.cli.report_commands import run_merge, run_recover, run_watch
from torchwatt.cli.script_runner import run_script
from torchwatt.core.errors import ConfigError
from torchwatt.metrics import named
from torchwatt.reports.run_options import html_target

FINDINGS_STATUS = 1  # exit status of a bundle with findings; 2 means that there is no bundle, or wrong usage


def _profile_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        **_carbon_options(arguments),
        **_store_options(arguments),
        "csv": arguments.csv,
        "html": arguments.html,
        "overwrite": arguments.overwrite,
        "layers": arguments.layers,
    }


def _carbon_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("region", "market", "facility", "pue", "factors", "allow_expired", "price_per_kwh")
    return {name: getattr(arguments, name) for name in names} | {"intensity_g_per_kwh": arguments.intensity}


def _store_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the store and project; `--store`, `--project` or `--shared` without `--keep` is an error."""
    if not arguments.keep:
        if arguments.store or arguments.project or arguments.shared:
            raise ConfigError("--store, --project and --shared apply to a saved run: add --keep")
        return {}
    return {"keep": arguments.store or default_store(), "project": arguments.project}


def _share_runs(arguments: argparse.Namespace, files: Sequence[Path]) -> None:
    """With `--shared`, give the files of a saved run the umask's permissions."""
    store = Store((Path(arguments.store).expanduser() if arguments.store else default_store()).absolute())
    for path in files if arguments.shared else ():
        if path.parent.parent == store.root:
            store.share(path)


def _run_script(arguments: argparse.Namespace) -> int:
    if arguments.allow_host and not any(where.startswith("prometheus:") for where in arguments.metrics):
        raise ConfigError(
            "--allow-host names hosts for a Prometheus exporter: give --metrics prometheus:ADDRESS:PORT as well"
        )
    options = {**_profile_options(arguments), "journal": arguments.journal or not arguments.no_journal}
    return run_script(
        arguments.script,
        arguments.args,
        module=arguments.module,
        quiet=arguments.quiet,
        options=options,
        metrics=[partial(named, where, arguments.allow_host) for where in arguments.metrics],
        written=partial(_share_runs, arguments),
        run_options=arguments.run_options,
        live=arguments.live,
    )


def _doctor(arguments: argparse.Namespace) -> int:
    return print_discovery(as_json=arguments.json)


def _show(arguments: argparse.Namespace) -> int:
    return show_bundle(
        _find_bundle(arguments),
        by=arguments.by,
        everything=arguments.all,
        markdown=arguments.markdown,
        html=html_target(arguments.html),
    )


def _find_bundle(arguments: argparse.Namespace) -> str:
    """Return the named folder, or else the saved run of that id or name."""
    if Path(arguments.directory).is_dir():
        return str(arguments.directory)
    return str(Store(arguments.store).find(arguments.directory, arguments.project))


def _runs(arguments: argparse.Namespace) -> int:
    return list_runs(
        Store(arguments.store), project=arguments.project, month=arguments.month, rebuild=arguments.rebuild
    )


def _export(arguments: argparse.Namespace) -> int:
    return export_bundles(
        arguments.directories, arguments.to, arguments.out, arguments.pairs, arguments.scenario, arguments.training
    )


def _reprice(arguments: argparse.Namespace) -> int:
    return run_reprice(arguments, CarbonOptions(**_carbon_options(arguments)))


def _verify(arguments: argparse.Namespace) -> int:
    from torchwatt.audit import verify

    verification = verify(
        arguments.directory, chain=arguments.chain, runs=arguments.runs, allowed_signers=arguments.allowed_signers,
        require_signature=arguments.require_signature, require_chain=arguments.require_chain,
    )  # fmt: skip
    print(verification)
    return 0 if verification.ok else FINDINGS_STATUS


def _demo(arguments: argparse.Namespace) -> int:
    from torchwatt.cli.demo import run_demo

    return run_demo(
        epochs=arguments.epochs,
        options=_profile_options(arguments),
        out=sys.stdout,
        written=partial(_share_runs, arguments),
    )


def _calibrate(arguments: argparse.Namespace) -> int:
    from torchwatt.cli.doctor import calibrate_device

    return calibrate_device(arguments.device, arguments.seconds)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": _run_script,
    "doctor": _doctor,
    "calibrate": _calibrate,
    "show": _show,
    "verify": _verify,
    "demo": _demo,
    "attribute": run_attribute,
    "recover": run_recover,
    "reprice": _reprice,
    "export": _export,
    "runs": _runs,
    "fleet": run_fleet,
    "merge": lambda arguments: run_merge(arguments, _carbon_options(arguments)),
    "watch": lambda arguments: run_watch(arguments, _carbon_options(arguments)),
}
