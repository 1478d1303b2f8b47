"""Exports a bundle to the formats of other tools."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchwatt.audit.bundle import AS_RUN, Bundle, in_utf8, read_bundle, select_scenario
from torchwatt.audit.cell_codec import from_cell
from torchwatt.audit.exports.emissions_csv import emissions_csv
from torchwatt.audit.exports.markdown_reports import sci_ai_markdown, sci_markdown
from torchwatt.audit.exports.model_cards import boamps_json, card_yaml, cyclonedx_json, spdx_json
from torchwatt.audit.exports.training_runs import (
    TrainingRuns,
    TrainingTotals,
    ai_act_markdown,
    find_training,
    training_markdown,
)
from torchwatt.audit.exports.workbook import parquet_files, rollup_xlsx
from torchwatt.audit.schema import DECLARED, TABLE_BY_NAME
from torchwatt.core.errors import BundleError
from torchwatt.disk.private_files import FOLDER_MODE, create_file, make_private_folder

__all__ = ["FORMATS", "ExportFormat", "export"]

Make = Callable[[Sequence[Bundle]], bytes]


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """An export format: default file, and whether it takes several runs. Parquet writes a folder (`make` is None).

    `of_training` makes the file about all runs of a training; None: the format has no such form.
    """

    file: str
    make: Make | None
    several: bool = False
    of_training: Callable[[TrainingRuns], bytes] | None = None


def _sci_ai_of_training(training: TrainingRuns) -> bytes:
    left_out = [f"{item.directory.name} is left out: {item.reason}" for item in training.left_out if item.ours]
    reasons = [*left_out, *TrainingTotals(training).why_unknown()]
    return sci_ai_markdown(training.bundles, reasons, "provider", training.flops)


FORMATS: Mapping[str, ExportFormat] = {
    "codecarbon": ExportFormat("emissions.csv", emissions_csv, several=True),
    "boamps": ExportFormat("boamps.json", boamps_json),
    "huggingface": ExportFormat("co2_eq_emissions.yaml", card_yaml),
    "sci": ExportFormat("sci.md", sci_markdown),
    "sci-ai": ExportFormat("sci_ai.md", sci_ai_markdown, several=True, of_training=_sci_ai_of_training),
    "ai-act": ExportFormat("ai_act.md", ai_act_markdown, of_training=training_markdown),
    "spdx": ExportFormat("spdx.json", spdx_json),
    "cyclonedx": ExportFormat("cyclonedx.json", cyclonedx_json),
    "xlsx": ExportFormat("rollup.xlsx", rollup_xlsx, several=True),
    "parquet": ExportFormat("parquet", None, several=True),
}


def export(
    directories: Sequence[str | os.PathLike[str]],
    to: str,
    out: str | os.PathLike[str] | None = None,
    declared: Mapping[str, str] | None = None,
    scenario: str = AS_RUN,
    *,
    training: str | None = None,
) -> Path:
    """Write bundles in another format and return where.

    Args:
        directories: The bundles; most formats take one.
        to: A name in `FORMATS`.
        out: The new file (or folder, for parquet); default is the format's usual name, here.
        declared: Values for empty columns of `run` (`organisation`, `task_family`, ...); the bundle is not changed.
        scenario: Of the impacts: `as_run`, or one that `reprice` added, such as `repriced:2026`.
        training: The runs below `directories` of this name, project or parent run, instead of `directories`.

    Raises:
        BundleError: The format is unknown, a bundle cannot be read, something is missing, or the target exists.
    """
    file_format = FORMATS.get(to)
    if file_format is None:
        raise BundleError(f"no format {to!r}: there are {', '.join(FORMATS)}")
    if training is not None:
        return _export_training(directories, to, out, declared or {}, scenario, training)
    if len(directories) != 1 and not file_format.several:
        raise BundleError(f"{to} is about one run; {len(directories)} bundles were given")
    read = [_with_declarations(read_bundle(directory), declared or {}) for directory in directories]
    # Parquet has the unchanged tables with all scenarios.
    bundles = read if file_format.make is None else [select_scenario(bundle, scenario) for bundle in read]
    target = Path(out) if out is not None else Path(file_format.file)
    if file_format.make is None:
        return _write_all(target, parquet_files(bundles))
    return _write(target, file_format.make(bundles))


def _export_training(
    directories: Sequence[str | os.PathLike[str]],
    to: str,
    out: str | os.PathLike[str] | None,
    declared: Mapping[str, str],
    scenario: str,
    name: str,
) -> Path:
    file_format = FORMATS[to]
    if file_format.of_training is None:
        able = ", ".join(name for name, form in FORMATS.items() if form.of_training is not None)
        raise BundleError(f"{to} has no form about a training; --training is for {able}")
    values = {column: _parse_declaration(column, text) for column, text in declared.items()}
    selected = find_training(directories, name)
    # The other declarations hold for every run; operations are those of the training as a whole.
    for bundle in selected.bundles:
        _declare(bundle, values)  # refuses what a bundle states itself
    flops = values.pop("flops_total", None)
    bundles = tuple(select_scenario(_declare(bundle, values), scenario) for bundle in selected.bundles)
    target = Path(out) if out is not None else Path(file_format.file)
    return _write(target, file_format.of_training(replace(selected, bundles=bundles, flops=flops)))


def _with_declarations(bundle: Bundle, declared: Mapping[str, str]) -> Bundle:
    """Add declarations to the row of the run, parsed by the type of their column.

    Raises:
        BundleError: The column cannot be declared, has a value in the bundle, or the text is not of its type.
    """
    return _declare(bundle, {name: _parse_declaration(name, text) for name, text in declared.items()})


def _declare(bundle: Bundle, values: Mapping[str, Any]) -> Bundle:
    for name in values:
        if bundle.run[name] is not None:
            raise BundleError(f"{name} is {bundle.run[name]!r} in the bundle and cannot be declared again")
    tables = {**bundle.tables, "run": ({**bundle.run, **values},)}
    return replace(bundle, tables={name: in_utf8(rows) for name, rows in tables.items()})


def _parse_declaration(name: str, text: str) -> Any:
    if name not in (*DECLARED, "zone"):
        raise BundleError(f"{name!r} cannot be declared; it may be one of {', '.join(DECLARED)}, zone")
    column = TABLE_BY_NAME["run"].column(name)
    # Text cells are escaped, declarations are not.
    return text if column.type == "string" else from_cell(text, column)


def _write(target: Path, content: bytes) -> Path:
    try:
        with create_file(target) as file:
            file.write(content)
    except FileExistsError as error:
        raise BundleError(f"{target} exists already: name another file with --out, or move it") from error
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror}") from error
    return target


def _write_all(target: Path, files: Mapping[str, bytes]) -> Path:
    try:
        make_private_folder(target.parent)
        target.mkdir(mode=FOLDER_MODE)
    except FileExistsError as error:
        raise BundleError(f"{target} exists already: name another folder with --out, or move it") from error
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror}") from error
    for name, content in files.items():
        _write(target / name, content)
    return target
