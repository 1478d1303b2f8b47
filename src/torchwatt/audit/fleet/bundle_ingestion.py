"""Adds one bundle to the lake."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Literal

from torchwatt.audit.bundle import read_bundle, text, timestamp
from torchwatt.audit.bundle_limits import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, read_bundle_file
from torchwatt.audit.fleet.lake import Lake, part_path, run_of_path
from torchwatt.audit.fleet.lake_tables import TABLES, batches_of, lake_rows, part_bytes
from torchwatt.audit.schema import TABLES as SCHEMA
from torchwatt.audit.seal import MANIFEST
from torchwatt.core.errors import BundleError, TorchwattError
from torchwatt.disk.path_safety import open_untrusted, path_kind

State = Literal["added", "replaced", "present", "refused", "no bundle"]
SAMPLES = "sample.parquet"
_BLOCK = 1 << 20
_FILES = (*(f"{table.name}.csv" for table in SCHEMA if table.format == "csv"), SAMPLES, "sample.csv.gz")
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.][A-Za-z0-9_.-]*)")


@dataclass(frozen=True, slots=True)
class BundleRef:
    """A bundle and its project in the lake."""

    directory: str
    project: str
    root: str  # the folder that the user named; links below it are not followed


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """Options of `ingest`."""

    replace: bool = False
    samples: bool = False
    shared: bool = False  # the lake's files get the modes of the umask


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """Result of adding a bundle."""

    directory: str
    state: State
    why: str = ""
    layers: int = 0


def add_bundle(lake: Lake, bundle: BundleRef, present: dict[str, str], options: IngestOptions) -> IngestOutcome:
    """Add one bundle to the lake; a bundle that cannot be added gives the state `refused`.

    The part of `run` is written last: if it exists, all others do, and a run without it is not in any sum.

    Args:
        lake: The target.
        bundle: The bundle.
        present: The runs of the lake and the paths of their parts of `run`; an added run is added to it.
        options: Of the ingest.
    """
    try:
        return _add_checked(lake, bundle, present, options)
    except (TorchwattError, OSError) as error:
        return IngestOutcome(bundle.directory, "refused", str(error))


def _add_checked(lake: Lake, source: BundleRef, present: dict[str, str], options: IngestOptions) -> IngestOutcome:
    folder, root = Path(source.directory), Path(source.root)
    if path_kind(folder / MANIFEST) is None and not looks_like_bundle(folder):
        return IngestOutcome(source.directory, "no bundle", f"no {MANIFEST} in it, and no table of a bundle")
    manifest_sha256, listed = _check_manifest(folder, root)
    bundle = read_bundle(folder, root)
    run_id, started_at = text(bundle.run, "run_id"), timestamp(bundle.run, "started_at")
    if bundle.run["status"] == "running":
        raise BundleError(f"run {run_id} was still running: its whole is not known yet")
    path = part_path("run", source.project, started_at, run_id)
    before = present.get(run_id) or (
        path if lake.files.read(path) is not None else None
    )  # added since this ingest began
    if before is not None and (state := _state_in_lake(lake, before, manifest_sha256, options)):
        return IngestOutcome(source.directory, state)
    if before is not None and before != path:
        raise BundleError(f"run {run_id} is in project {run_of_path(before)[0]!r} already: one run is one project's")
    samples = _samples(folder, root, listed, run_id) if options.samples else None
    rows = lake_rows(bundle, manifest_sha256, sha256(samples).hexdigest() if samples is not None else None)
    # For a run that is replaced, tables without rows are written, too, because the old ones must not stay.
    parts = {table: part_bytes(table, rows[table]) for table in TABLES if rows[table] or before is not None}
    if samples is not None:
        parts["sample"] = samples
    mine = parts.pop("run")
    device = part_path("device", source.project, started_at, run_id)
    content = parts.pop("device", None) or part_bytes("device", ())
    if not lake.files.write(device, content, replace=options.replace) and lake.files.read(device) != content:
        # Another ingest adds this run at the same time: its parts must not be replaced.
        raise BundleError(f"run {run_id}: an ingest adds it with other content, or died doing so: see --replace")
    for table, content in parts.items():
        # Parts that an interrupted or concurrent ingest of this run wrote have the same bytes.
        lake.files.write(part_path(table, source.project, started_at, run_id), content, replace=True)
    won = lake.files.write(path, mine, replace=before is not None)
    present[run_id] = path
    if not won:
        _state_in_lake(lake, path, manifest_sha256, IngestOptions())
    state = "replaced" if before is not None else "added" if won else "present"
    return IngestOutcome(source.directory, state, layers=len(rows["layer"]))


def looks_like_bundle(folder: Path) -> bool:
    """Return whether a folder contains a table of a bundle."""
    return any(path_kind(folder / name) is not None for name in _FILES)


def _check_manifest(folder: Path, root: Path) -> tuple[str, dict[str, str]]:
    """Return the hash of the manifest and its hashes by file, each compared with the file.

    Raises:
        BundleError: A file differs from the manifest or is not a plain file, or a table is not in the manifest.
    """
    if path_kind(folder / MANIFEST) is None:
        raise BundleError(f"{folder} has no {MANIFEST}: it is no bundle")
    content = read_bundle_file(folder / MANIFEST, MAX_MANIFEST_BYTES, root)
    listed = {m[2]: m[1] for line in content.decode(errors="replace").splitlines() if (m := _LINE.fullmatch(line))}
    tables = {name for name in _FILES if path_kind(folder / name) is not None}
    for name in sorted({f"{table}.csv" for table in TABLES} | tables | listed.keys()):
        if listed.get(name) != _digest(folder / name, root):
            raise BundleError(f"{folder / name} differs from {MANIFEST}: run `torchwatt verify`")
    return sha256(content).hexdigest(), listed


def _digest(path: Path, root: Path) -> str:
    try:
        with open_untrusted(path, MAX_FILE_BYTES, root) as file:
            digest = sha256()
            while block := file.read(_BLOCK):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def _samples(folder: Path, root: Path, listed: Mapping[str, str], run_id: str) -> bytes | None:
    """Return the samples of a bundle if they are Parquet, else None.

    Raises:
        BundleError: They differ from the manifest, or are of another run.
    """
    import pyarrow as pa

    if SAMPLES not in listed:
        return None
    content = read_bundle_file(folder / SAMPLES, root=root)
    if sha256(content).hexdigest() != listed[SAMPLES]:
        raise BundleError(f"{folder / SAMPLES} differs from {MANIFEST}: run `torchwatt verify`")
    try:
        runs = {run for batch in batches_of(content, ["run_id"]) for run in batch[0].unique().to_pylist()}
    except (pa.ArrowException, OSError, KeyError, IndexError) as error:
        raise BundleError(f"{folder / SAMPLES} cannot be read: {error}") from error
    if runs - {run_id}:
        raise BundleError(f"{folder / SAMPLES} has samples of another run")
    return content


def _state_in_lake(lake: Lake, path: str, manifest_sha256: str, options: IngestOptions) -> State | None:
    """Return the state of a run that is in the lake; None if it will be replaced.

    Raises:
        BundleError: It is in the lake with other content, and `replace` is not set.
    """
    import pyarrow.parquet as pq

    content = lake.files.read(path)
    try:
        column = pq.read_table(BytesIO(content or b""), columns=["lake_manifest_sha256"]).column(0)
        digest = column[0].as_py() if len(column) else None
    except Exception:  # pyarrow raises errors of many types for a damaged part
        digest = None
    if digest == manifest_sha256:
        return "present"
    if options.replace:
        return None
    reason = "with other content (another scenario?)" if digest else f"and {path} is damaged"
    raise BundleError(
        f"run {run_of_path(path)[1]} is in the lake already {reason}: --replace puts this one in its place"
    )
