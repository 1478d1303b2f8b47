"""One bundle into the lake."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Literal

from torchwatt.audit.exports.cells import text, when
from torchwatt.audit.fleet.arrow import part_bytes
from torchwatt.audit.fleet.columns import TABLES, lake_rows
from torchwatt.audit.fleet.lake import Lake
from torchwatt.audit.fleet.paths import part, run_of
from torchwatt.audit.inside import MAX_MANIFEST_BYTES, content_of
from torchwatt.audit.reader import read_bundle
from torchwatt.audit.seal import MANIFEST
from torchwatt.core.errors import BundleError, TorchwattError
from torchwatt.disk.path_safety import kind_of

State = Literal["added", "replaced", "present", "refused"]
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.][A-Za-z0-9_.-]*)")


@dataclass(frozen=True, slots=True)
class Found:
    """A bundle, and under which project it goes into the lake."""

    directory: str
    project: str
    root: str  # the folder that the user named: no link below it is followed


@dataclass(frozen=True, slots=True)
class How:
    """What `ingest` was asked."""

    replace: bool = False
    samples: bool = False
    shared: bool = False  # the lake's files get the modes of the umask


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a bundle."""

    directory: str
    state: State
    why: str = ""
    layers: int = 0


def add_one(lake: Lake, found: Found, there: dict[str, str], how: How) -> Outcome:
    """Put one bundle into the lake; `there` says which runs are in it. A bundle that cannot be added is refused.

    The part of `run` is written last: where it is, all others are, and a run without it counts nowhere.
    """
    try:
        return _add(lake, found, there, how)
    except (TorchwattError, OSError) as error:
        return Outcome(found.directory, "refused", str(error))


def _add(lake: Lake, found: Found, there: dict[str, str], how: How) -> Outcome:
    folder, root = Path(found.directory), Path(found.root)
    listed, manifest_sha256 = _manifest(folder, root)
    for table in TABLES:
        _listed_content(folder / f"{table}.csv", root, listed)
    bundle = read_bundle(folder, root)
    run_id, started_at = text(bundle.run, "run_id"), when(bundle.run, "started_at")
    if bundle.run["status"] == "running":
        raise BundleError(f"run {run_id} was still running: its whole is not known yet")
    before = there.get(run_id)
    path = part("run", found.project, started_at, run_id)
    if before is not None and (state := _same(lake, before, manifest_sha256, how)):
        return Outcome(found.directory, state)
    if before is not None and before != path:
        raise BundleError(f"run {run_id} is in project {run_of(before)[0]!r} already: one run is one project's")
    rows = lake_rows(bundle, manifest_sha256)
    # Of a run that is replaced, a table without rows is written too: the old one's must not stay.
    parts = {table: part_bytes(table, rows[table]) for table in TABLES if rows[table] or before is not None}
    if how.samples and kind_of(folder / "sample.parquet") is not None:
        parts = {"sample": _listed_content(folder / "sample.parquet", root, listed), **parts}
    mine = parts.pop("run")
    for table, content in parts.items():
        # What an ingest that died left of this run, or another is writing just now, has the same bytes.
        lake.files.write(part(table, found.project, started_at, run_id), content, replace=True)
    won = lake.files.write(path, mine, replace=before is not None)
    there[run_id] = path
    state = "replaced" if before is not None else "added" if won else "present"
    return Outcome(found.directory, state, layers=len(rows["layer"]))


def _manifest(folder: Path, root: Path) -> tuple[dict[str, str], str]:
    """Return the hashes that the manifest lists by file name, and its own.

    Raises:
        BundleError: There is none, or it is no plain file of the bundle's own.
    """
    content = content_of(folder / MANIFEST, MAX_MANIFEST_BYTES, root)
    lines = content.decode(errors="replace").splitlines()
    return {found[2]: found[1] for line in lines if (found := _LINE.fullmatch(line))}, sha256(content).hexdigest()


def _listed_content(path: Path, root: Path, listed: Mapping[str, str]) -> bytes:
    """Return a file's content.

    Raises:
        BundleError: It cannot be read, or differs from the manifest.
    """
    content = content_of(path, root=root)
    if listed.get(path.name) != sha256(content).hexdigest():
        raise BundleError(f"{path} differs from {MANIFEST}: run `torchwatt verify`")
    return content


def _same(lake: Lake, path: str, manifest_sha256: str, how: How) -> State | None:
    """Return what to say of a run that is in the lake; None where it is to be replaced.

    Raises:
        BundleError: It is in the lake with other content, and may not be replaced.
    """
    import pyarrow.parquet as pq

    content = lake.files.read(path)
    try:
        column = pq.read_table(BytesIO(content or b""), columns=["lake_manifest_sha256"]).column(0)
        known = column[0].as_py() if len(column) else None
    except Exception:  # a damaged part says nothing, whatever pyarrow raises for it
        known = None
    if known == manifest_sha256:
        return "present"
    if how.replace:
        return None
    what = "with other content (another scenario?)" if known else f"and {path} is damaged"
    raise BundleError(f"run {run_of(path)[1]} is in the lake already {what}: --replace puts this one in its place")
