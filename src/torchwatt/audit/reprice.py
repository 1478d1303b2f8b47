"""Writes a bundle with additional impacts; the files of the measurement stay the same, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from torchwatt.audit.inside import content_of, is_file_name, is_own
from torchwatt.audit.reader import Bundle
from torchwatt.audit.rows import factor_rows, impact_rows
from torchwatt.audit.seal import MANIFEST, ORIGINAL_MANIFEST, Seal
from torchwatt.audit.table import table_bytes
from torchwatt.audit.writer import write_files
from torchwatt.core.errors import BundleError
from torchwatt.core.factor import Factor, Impact

_REWRITTEN = frozenset({"factor.csv", "impact.csv"})
_DESCRIPTIONS = frozenset({"datapackage.json", "csvw-metadata.json"})


def write_repriced(
    bundle: Bundle, factors: Sequence[Factor], impacts: Sequence[Impact], target: Path, seal: Seal
) -> Path:
    """Write the new bundle; see `torchwatt.session.reprice.reprice`.

    Raises:
        BundleError: The old bundle differs from its manifest, or the new one cannot be written.
    """
    files = _measured(bundle.directory)
    run_id = str(bundle.run["run_id"])
    units = bundle.run["functional_unit_count"]
    factor_ids = {row["factor_id"] for row in bundle["factor"]}
    more = [row for row in factor_rows(tuple(factors)) if row["factor_id"] not in factor_ids]
    added = impact_rows(run_id, tuple(impacts), tuple(factors), float(units) if isinstance(units, int | float) else 0.0)
    files["factor.csv"] = table_bytes(bundle.schema.table("factor"), [*bundle["factor"], *more])
    files["impact.csv"] = table_bytes(bundle.schema.table("impact"), [*bundle["impact"], *added])
    return write_files(files, target, run_id=run_id, seal=seal, schema=bundle.schema)


def _measured(folder: Path) -> dict[str, bytes]:
    """Return the files of the measurement, each compared with the manifest, so that no altered file is sealed again."""
    try:
        original = content_of(folder / MANIFEST)
        files = {ORIGINAL_MANIFEST: original}
        for line in original.decode().splitlines():
            digest, _, name = line.partition("  ")
            if not is_file_name(name):
                raise BundleError(f"{folder / MANIFEST} names {name[:100]!r}, which cannot be a file of a bundle")
            content = content_of(folder / name)
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
    return content_of(original if is_own(original) else folder / MANIFEST)
