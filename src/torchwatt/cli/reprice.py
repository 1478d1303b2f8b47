"""`torchwatt reprice DIR --factors F`: computes new impacts for the joules of a bundle."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from torchwatt.audit import Seal
from torchwatt.carbon import Asked
from torchwatt.carbon.grids import Grid
from torchwatt.cli.outputs import TOKEN
from torchwatt.core.errors import ConfigError
from torchwatt.core.plain_text import printable, printable_lines
from torchwatt.session.reprice import hours_of_bundle, reprice
from torchwatt.views import format_mass


def run_reprice(arguments: Namespace, carbon: Asked) -> int:
    """Write the new bundle; print its path, its notes and the new grams.

    Raises:
        BundleError: The bundle cannot be read or the new one cannot be written.
        ConfigError: No factors were given.
        FactorError: The factors cannot be used.
    """
    scenario = arguments.scenario or _name(arguments.factors)
    done = reprice(
        arguments.directory,
        carbon,
        scenario=scenario,
        target=arguments.to,
        extra=_fetched(arguments),
        seal=Seal(chain=Path(arguments.chain) if arguments.chain else None),
    )
    for note in done.notes:
        print(printable_lines(f"{note.severity}: {note.code}: {note.message}"), file=sys.stderr)
    for impact in done.priced.impacts:
        if impact.subject == "run" and impact.criterion == "gwp":
            line = f"{impact.accounting_method} {impact.phase}: {format_mass(impact.value)} CO2e = {impact.formula}"
            print(printable(line))
    print(printable(f"{done.scenario} in {done.directory}"))
    return 0


def _name(paths: list[str] | None) -> str:
    return Path(paths[0]).stem if paths else f"{datetime.now(UTC):%Y-%m-%d}"


def _fetched(arguments: Namespace) -> list[Grid]:
    """Fetch hourly grids from Electricity Maps; no network access without `--electricity-maps`."""
    if arguments.electricity_maps is None:
        return []
    from torchwatt.carbon.electricity_maps_api import API, fetch_hours

    token = os.environ.get(TOKEN, "")
    if not token:
        raise ConfigError(f"--electricity-maps needs your API token in the environment variable {TOKEN}")
    hours = hours_of_bundle(arguments.directory)
    url = arguments.electricity_maps_url or API
    return [fetch_hours(hours, zone=arguments.electricity_maps, token=token, at=datetime.now(UTC), url=url)]
