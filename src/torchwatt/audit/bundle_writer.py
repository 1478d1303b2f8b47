"""Writes bundles: a folder appears completely or not at all, and is written once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE

from torchwatt.audit.bundle import Bundle
from torchwatt.audit.bundle_limits import is_file_name, is_plain_file, read_bundle_file
from torchwatt.audit.cell_codec import table_bytes
from torchwatt.audit.sample_table import SampleFormat, sample_file
from torchwatt.audit.schema import TABLES
from torchwatt.audit.schema.schema_versions import CURRENT, Schema
from torchwatt.audit.seal import (
    GIT_ATTRIBUTES,
    KEEP_BYTES,
    MANIFEST,
    NO_SEAL,
    ORIGINAL_MANIFEST,
    STATEMENT,
    Seal,
    append_link,
    digests,
    lock_chain,
    manifest,
    next_link,
    sign,
    statement,
)
from torchwatt.audit.table_descriptions import csvw_json, datapackage_json
from torchwatt.audit.table_rows import factor_rows, impact_rows, rows_by_table
from torchwatt.core.errors import BundleError
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.report import Report
from torchwatt.disk.private_files import FOLDER_MODE, create_file, make_private_folder


def write_bundle(
    report: Report,
    directory: str | os.PathLike[str],
    *,
    samples: SampleFormat = "auto",
    overwrite: bool = False,
    seal: Seal = NO_SEAL,
) -> Path:
    """Write the report as a bundle and return the folder.

    The files are written to a hidden folder beside it, flushed to the disk and renamed, so a crash leaves
    no partial bundle with that name. `MANIFEST.sha256` can be checked with `sha256sum -c`.

    Args:
        report: Equal reports give equal bytes.
        directory: The folder to make.
        samples: `parquet`, `csv.gz`, or `auto`: Parquet where pyarrow is installed.
        overwrite: Replace an older bundle of that name; other files and folders are never replaced.
        seal: A chain to append the bundle to, a key to sign it.

    Raises:
        BundleError: The folder exists and is not empty, cannot be written, or the report holds a number
            that is not finite.
    """
    target = Path(directory).absolute()
    _refuse_existing(target, overwrite=overwrite)
    return write_files(table_files(report, samples), target, run_id=report.run_id, overwrite=overwrite, seal=seal)


def table_files(report: Report, samples: SampleFormat = "auto") -> dict[str, bytes]:
    """Return the tables of a bundle by file name."""
    rows = rows_by_table(report)
    files = {
        f"{table.name}.csv": table_bytes(table, rows[table.name])
        for table in TABLES
        if table.format == "csv" and (rows[table.name] or not table.optional)
    }
    name, content = sample_file(report, samples)
    return files | {name: content}


def write_files(
    tables: Mapping[str, bytes],
    directory: str | os.PathLike[str],
    *,
    run_id: str,
    overwrite: bool = False,
    seal: Seal = NO_SEAL,
    schema: Schema = CURRENT,
) -> Path:
    """Write tables of a version with their descriptions, manifest and statement; see `write_bundle`."""
    target = Path(directory).absolute()
    _refuse_existing(target, overwrite=overwrite)
    files = dict(tables)
    sizes = {name: (len(tables[name]), digest) for name, digest in digests(tables).items()}
    files["datapackage.json"] = datapackage_json(run_id, sizes, schema)
    files["csvw-metadata.json"] = csvw_json(tables, schema)
    listed = digests(files)
    files[MANIFEST] = manifest(listed)
    if seal.chain is None:
        content = statement(listed, run_id, None, version=schema.version)
        return _write_folder(target, files | {STATEMENT: content}, seal.key)
    with lock_chain(seal.chain) as ledger:
        link = next_link(seal.chain, run_id, target.name, sha256(files[MANIFEST]).hexdigest())
        content = statement(listed, run_id, link, version=schema.version)
        return _write_folder(target, files | {STATEMENT: content}, seal.key, partial(append_link, ledger, link))


def _write_folder(
    target: Path, files: Mapping[str, bytes], key: Path | None, record: Callable[[], None] = lambda: None
) -> Path:
    """Write the folder and record it; if it cannot be recorded, remove it again."""
    hidden = target.with_name(f".{target.name}.{token_hex(4)}.part")
    try:
        make_private_folder(target if target.parent == target.parent.parent else target.parent)
        hidden.mkdir(mode=FOLDER_MODE)
        for name, content in {**files, GIT_ATTRIBUTES: KEEP_BYTES}.items():
            _write(hidden / name, content)
        if key is not None:
            sign(hidden / STATEMENT, key)
        if target.is_dir():
            hidden.chmod(S_IMODE(target.stat().st_mode))  # keep the mode of an existing folder
        with _set_aside(target):
            hidden.rename(target)
            try:
                record()
            except BaseException:
                (target / MANIFEST).unlink()  # what is left of a folder that cannot be deleted is no bundle
                shutil.rmtree(target)
                raise
    except OSError as error:
        raise BundleError(f"cannot write the bundle {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target


def free_name(directory: Path) -> Path:
    """Return a folder that a bundle can be written to: the named one, or the first of `NAME-2`, `NAME-3`, ... .

    Raises:
        BundleError: The name is that of a file.
    """
    number, target = 1, directory
    while target.is_dir() and any(target.iterdir()):
        number += 1
        target = directory.with_name(f"{directory.name}-{number}")
    if target.exists() and not target.is_dir():
        raise BundleError(f"{target} is a file: name a folder for the audit tables")
    return target


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() and not (overwrite and (target / MANIFEST).is_file()):
        hint = "only a bundle can be replaced" if overwrite else "a bundle is made once"
        raise BundleError(
            f"{target} exists and is not an empty folder; {hint}: give another folder, or move this one away"
        )


@contextmanager
def _set_aside(target: Path) -> Iterator[None]:
    """Rename an old bundle, and delete it after the new one is in its place; restore it on failure."""
    if not (target / MANIFEST).is_file():
        yield
        return
    aside = target.with_name(f".{target.name}.{token_hex(4)}.old")
    target.rename(aside)
    try:
        yield
    except BaseException as error:
        try:
            aside.rename(target)
        except OSError:
            raise BundleError(f"cannot write the bundle {target}: {error}; the old one is now {aside}") from error
        raise
    shutil.rmtree(aside)


def _write(path: Path, content: bytes) -> None:
    with create_file(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


_REWRITTEN = frozenset({"factor.csv", "impact.csv"})
_DESCRIPTIONS = frozenset({"datapackage.json", "csvw-metadata.json"})


def write_repriced(
    bundle: Bundle, factors: Sequence[Factor], impacts: Sequence[Impact], target: Path, seal: Seal
) -> Path:
    """Write the new bundle; see `torchwatt.offline.repricing.reprice`.

    Raises:
        BundleError: The old bundle differs from its manifest, or the new one cannot be written.
    """
    files = _measured_files(bundle.directory)
    run_id = str(bundle.run["run_id"])
    units = bundle.run["functional_unit_count"]
    factor_ids = {row["factor_id"] for row in bundle["factor"]}
    more = [row for row in factor_rows(tuple(factors)) if row["factor_id"] not in factor_ids]
    added = impact_rows(run_id, tuple(impacts), tuple(factors), float(units) if isinstance(units, int | float) else 0.0)
    files["factor.csv"] = table_bytes(bundle.schema.table("factor"), [*bundle["factor"], *more])
    files["impact.csv"] = table_bytes(bundle.schema.table("impact"), [*bundle["impact"], *added])
    return write_files(files, target, run_id=run_id, seal=seal, schema=bundle.schema)


def _measured_files(folder: Path) -> dict[str, bytes]:
    """Return the files of the measurement, each compared with the manifest, so that no altered file is sealed again."""
    try:
        original = read_bundle_file(folder / MANIFEST)
        files = {ORIGINAL_MANIFEST: original}
        for line in original.decode().splitlines():
            digest, _, name = line.partition("  ")
            if not is_file_name(name):
                raise BundleError(f"{folder / MANIFEST} names {name[:100]!r}, which cannot be a file of a bundle")
            content = read_bundle_file(folder / name)
            if sha256(content).hexdigest() != digest:
                raise BundleError(f"{folder / name} differs from {MANIFEST}: see `torchwatt verify {folder}`")
            if name not in _REWRITTEN | _DESCRIPTIONS:
                # In a bundle that was repriced before, the manifest of the measurement stays.
                files[name] = content
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder}: cannot read what its manifest lists: {error}") from error
    return files


def first_manifest(folder: Path) -> bytes:
    """Return the manifest of the bundle that was measured, before any repricing."""
    original = folder / ORIGINAL_MANIFEST
    return read_bundle_file(original if is_plain_file(original) else folder / MANIFEST)
