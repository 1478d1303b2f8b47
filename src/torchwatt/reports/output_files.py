"""Writes the output files that the user requested for a report."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torchwatt.audit import SampleFormat, Seal, free_name, write_bundle
from torchwatt.audit.store import Store
from torchwatt.core.errors import BundleError, warn
from torchwatt.core.report import Report
from torchwatt.disk.private_files import make_private_folder, missing_folders, replace_file
from torchwatt.reports.run_options import RunOptions
from torchwatt.views import SpanTimeline, to_html_page, to_perfetto

# The same chain and key apply to every way to write a bundle: notebook, command line, Python.
CHAIN_VARIABLE = "TORCHWATT_CHAIN"
KEY_VARIABLE = "TORCHWATT_SIGN_KEY"


@dataclass(frozen=True, slots=True)
class WrittenFiles:
    """Paths that a session wrote, and notes for the user about them."""

    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()  # folders that were created, names that differ from the requested ones
    complete: bool = True  # all requested files were written


def write_outputs(report: Report, options: RunOptions) -> WrittenFiles:
    """Write the requested files.

    A failure is a warning and the other files are still written: a full disk must not replace the user's exception.
    """
    complete, notes, paths = True, [], []
    outputs: list[tuple[str, Path | None, Callable[[Report, Path], Path]]] = [
        ("csv", options.csv, partial(write_csv, overwrite=options.overwrite)),
        ("html", options.html, write_html),
        ("keep", options.keep, partial(keep_run, project=options.project)),
    ]
    for option, target, write in outputs:
        if target is None:
            continue
        try:
            written, output_notes = write_output(report, option, target, write)
        except Exception as error:
            complete = False
            warn(f"torchwatt could not write {target}: {error}")
            continue
        paths.append(written)
        notes += output_notes
    return WrittenFiles(tuple(paths), tuple(notes), complete)


def write_output(
    report: Report, option: str, target: Path, write: Callable[[Report, Path], Path]
) -> tuple[Path, list[str]]:
    """Write one output; return its path and notes for the user: folders created, a name that differs.

    `what` is the option that requested it: csv, html or keep.
    """
    new_folders = [] if option == "keep" else missing_folders(target.parent)
    written = write(report, target)
    notes = [f"created the folder {folder} for {option}={str(target)!r}" for folder in new_folders]
    if option == "csv" and written != target:
        notes.append(f"{target} is not empty: this run is in {written}")
    return written, notes


def write_csv(
    report: Report,
    directory: str | os.PathLike[str],
    *,
    samples: SampleFormat = "auto",
    overwrite: bool = False,
    chain: str | os.PathLike[str] | None = None,
    sign_key: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the audit tables into a new folder; see `Run.to_csv`."""
    seal = Seal(_path_or_variable(chain, CHAIN_VARIABLE), _path_or_variable(sign_key, KEY_VARIABLE))
    target = Path(directory).absolute()
    if not overwrite:
        target = free_name(target)
    return write_bundle(report, target, samples=samples, overwrite=overwrite, seal=seal)


def _path_or_variable(path: str | os.PathLike[str] | None, variable: str) -> Path | None:
    path_text = path or os.environ.get(variable)
    return Path(path_text) if path_text else None


def keep_run(report: Report, store: str | os.PathLike[str] | None, project: str) -> Path:
    """Save a run in a store, by default the user's.

    Raises:
        BundleError: The run is already in the store, or cannot be written.
        ConfigError: The project's name is invalid.
    """
    return Store(store).keep(report, project)


def write_html(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write one self-contained page, replacing an older file of that name; parent folders are created.

    Raises:
        BundleError: `path` exists and is not a file, or cannot be written.
    """
    return _replace(Path(path).absolute(), to_html_page(report).encode(), "the page", "report.html")


def write_perfetto(report: Report, path: str | os.PathLike[str], timeline: SpanTimeline | None = None) -> Path:
    """Write the run as a trace for Perfetto, replacing an older file of that name; compressed if it ends in `.gz`.

    Raises:
        BundleError: `path` exists and is not a file, or cannot be written.
    """
    target = Path(path).absolute()
    content = to_perfetto(report, timeline)
    if target.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    return _replace(target, content, "the trace", "run.json.gz")


def _replace(target: Path, content: bytes, what: str, example: str) -> Path:
    if target.exists() and not target.is_file():
        raise BundleError(f"{target} is not a file: name one for {what}, such as {target / example}")
    try:
        make_private_folder(target.parent)
        replace_file(target, content)
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror}") from error
    return target
