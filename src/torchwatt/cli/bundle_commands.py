"""`torchwatt show DIR`: prints the values in a bundle's files."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from torchwatt.audit import Seal, read_bundle
from torchwatt.audit.counted_run import RunShare
from torchwatt.audit.exports import FORMATS, export
from torchwatt.audit.report_loader import load_priced_report, load_report
from torchwatt.audit.run_index import monthly_sums
from torchwatt.audit.schema import Row
from torchwatt.audit.seal import MANIFEST
from torchwatt.audit.store import MonthlySum, Store, StoredRun, shares_of_runs
from torchwatt.carbon import CarbonOptions
from torchwatt.carbon.grid_series import GridSeries
from torchwatt.cli.report_commands import TOKEN_VARIABLE, unrecovered_lines
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.core.plain_text import escape_unprintable, escape_unprintable_lines
from torchwatt.offline.repricing import bundle_hours, reprice
from torchwatt.reports.output_files import write_html, write_output, write_perfetto
from torchwatt.reports.report_result import terminal_width
from torchwatt.views import DASH, MAX_LAYERS, View, format_energy, format_mass, format_time, to_markdown, to_text

PERFETTO, PERFETTO_FILE = "perfetto", "run.json.gz"


def show_bundle(
    directory: str,
    *,
    by: View | None = None,
    everything: bool = False,
    markdown: bool = False,
    html: Path | None = None,
    out: IO[str] | None = None,
) -> int:
    """Print the report of a bundle as `run` prints it, and its other carbon numbers; or write it as a page to `html`.

    Raises:
        BundleError: The folder is not a bundle, a file in it is malformed, or the page cannot be written.
    """
    report = load_priced_report(directory)
    if html is not None:
        path, notes = write_output(report, "html", html, write_html)
        print(escape_unprintable_lines("\n".join((*notes, f"written: {path}"))), file=out or sys.stdout)
        return 0
    max_layers = None if everything else MAX_LAYERS
    by = by or ("hottest" if everything else None)
    if markdown:
        text = to_markdown(report, max_layers=max_layers, by=by)
    else:
        text = to_text(report, max_layers=max_layers, width=terminal_width(), by=by)
    print(text, file=out or sys.stdout)  # text in a bundle is untrusted: both escape it
    impacts = [_impact_text(row) for row in read_bundle(directory)["impact"] if row["subject"] == "run"]
    for line in impacts:
        print(escape_unprintable(f"- {line}" if markdown else line), file=out or sys.stdout)
    return 0


def _impact_text(row: Row) -> str:
    """Return an impact's amount, criterion, phase, method, scenario and formula."""
    value = _float_or_none(row["value"])
    amount = f"{format_mass(value)} CO2e" if row["criterion"] == "gwp" else f"{value:.3g} {row['unit']}"
    kind = f"{row['criterion']} {row['phase']}, {row['accounting_method']}, {row['scenario']}"
    return f"{amount} ({kind}) = {row['formula']}"


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)


def export_bundles(
    directories: Sequence[str],
    to: str,
    out: str | None,
    pairs: Sequence[str],
    scenario: str,
    training: str | None = None,
) -> int:
    """Write the file and print its path.

    Raises:
        BundleError: A bundle cannot be read, something is missing, or the target exists.
        ConfigError: A `--set` is not NAME=VALUE.
    """
    if to == PERFETTO and training is not None:
        raise BundleError(f"{PERFETTO} has no form about a training")
    if to == PERFETTO:
        print(escape_unprintable(str(_export_trace(directories, Path(out or PERFETTO_FILE)))))
        return 0
    if to not in FORMATS:
        raise BundleError(f"no format {to!r}: there are {', '.join(FORMATS)}, {PERFETTO}")
    declared = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value:
            raise ConfigError(f"--set {pair}: give NAME=VALUE, such as organisation=ACME")
        declared[name] = value
    print(escape_unprintable(str(export(directories, to, out, declared, scenario, training=training))))
    return 0


def _export_trace(directories: Sequence[str], target: Path) -> Path:
    """Write a bundle as a trace for Perfetto; a bundle has steps, epochs and readings, and no spans of modules."""
    if len(directories) != 1:
        raise BundleError(f"{PERFETTO} is about one run; {len(directories)} bundles were given")
    if target.exists():
        raise BundleError(f"{target} exists already: name another file with --out, or move it")
    return write_perfetto(load_report(directories[0], all_windows=True), target)


def run_reprice(arguments: Namespace, carbon: CarbonOptions) -> int:
    """Write the new bundle; print its path, its notes and the new grams.

    Raises:
        BundleError: The bundle cannot be read or the new one cannot be written.
        ConfigError: No factors were given.
        FactorError: The factors cannot be used.
    """
    scenario = arguments.scenario or _default_scenario(arguments.factors)
    done = reprice(
        arguments.directory,
        carbon,
        scenario=scenario,
        target=arguments.to,
        extra=_fetch_grids(arguments),
        seal=Seal(chain=Path(arguments.chain) if arguments.chain else None),
    )
    for note in done.notes:
        print(escape_unprintable_lines(f"{note.severity}: {note.code}: {note.message}"), file=sys.stderr)
    for impact in done.priced.impacts:
        if impact.subject == "run" and impact.criterion == "gwp":
            line = f"{impact.accounting_method} {impact.phase}: {format_mass(impact.value)} CO2e = {impact.formula}"
            print(escape_unprintable(line))
    print(escape_unprintable(f"{done.scenario} in {done.directory}"))
    return 0


def _default_scenario(paths: list[str] | None) -> str:
    return Path(paths[0]).stem if paths else f"{datetime.now(UTC):%Y-%m-%d}"


def _fetch_grids(arguments: Namespace) -> list[GridSeries]:
    """Fetch hourly grids from Electricity Maps; no network access without `--electricity-maps`."""
    if arguments.electricity_maps is None:
        return []
    from torchwatt.carbon.electricity_maps_api import API, fetch_hours

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise ConfigError(f"--electricity-maps needs your API token in the environment variable {TOKEN_VARIABLE}")
    hours = bundle_hours(arguments.directory)
    url = arguments.electricity_maps_url or API
    return [fetch_hours(hours, zone=arguments.electricity_maps, token=token, at=datetime.now(UTC), url=url)]


def list_runs(
    store: Store, *, project: str | None, month: str | None, rebuild: bool, out: IO[str] | None = None
) -> int:
    """Print the saved runs and their sums by project and month.

    Raises:
        BundleError: The store cannot be read.
    """
    if rebuild:
        store.rebuild()
    everything = store.runs()
    selected = [run for run in everything if project in {None, run.project} and month in {None, run.month}]
    for line in _run_lines(store, selected, shares_of_runs(everything)):
        print(escape_unprintable(line), file=out or sys.stdout)
    for folder in store.list_unsealed():
        print(
            escape_unprintable(f"not counted: {folder} has no {MANIFEST} and is not a bundle"), file=out or sys.stdout
        )
    for line in unrecovered_lines(store, {run.run_id for run in everything}):
        print(escape_unprintable(line), file=out or sys.stdout)
    return 0


def _run_lines(store: Store, selected: Sequence[StoredRun], among: Mapping[str, RunShare]) -> Iterator[str]:
    if not selected:
        yield f"no runs in {store.root}; save one with --keep, or run.keep()"
        return
    yield f"{'run':36}  {'project':14} {'began (UTC)':17} {'time':>9} {'energy':>10} {'CO2e':>10}  provenance  name"
    for run in selected:
        grams = DASH if run.location_g is None else format_mass(run.location_g)
        yield (
            f"{run.run_id:36}  {run.project:14.14} {run.started_at[:16].replace('T', ' '):17} "
            f"{format_time(run.duration_s):>9} {format_energy(run.energy_j):>10} {grams:>10}  "
            f"{run.provenance or DASH:11} {run.name}{_counting_state(among[run.key])}"
        )
    yield ""
    for group in monthly_sums(selected, among):
        yield from _group_lines(group)


def _counting_state(share: RunShare) -> str:
    return "" if share.state == "yes" else f"  [{share.state}]"


def _group_lines(group: MonthlySum) -> Iterator[str]:
    total = group.total
    words = [f"{total.runs} runs", f"energy {format_energy(total.energy_j)}"]
    if total.j_per_unit is not None and total.unit != "run":
        words.append(f"{format_energy(total.j_per_unit)} per {total.unit} (sum over sum)")
    for method, grams in (("location", total.location_g), ("market", total.market_g)):
        if grams is not None:
            words.append(f"{format_mass(grams)} CO2e {method}-based")
    yield f"{group.project} {group.month}: {', '.join(words)}"
    for why in total.shared:
        yield f"    counted once: {why}"
    for why in total.refused:
        yield f"    not added: {why}"
