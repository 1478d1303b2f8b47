"""Write a bundle: a folder that appears whole or not at all, and is made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

from torchwatt.audit.rows import rows_by_table
from torchwatt.audit.samples import SampleFormat, sample_file
from torchwatt.audit.schema import TABLES
from torchwatt.audit.table import table_bytes
from torchwatt.core.errors import BundleError
from torchwatt.core.report import Report

MANIFEST = "MANIFEST.sha256"


def write_bundle(report: Report, directory: str | os.PathLike[str], *, samples: SampleFormat = "auto") -> Path:
    """Write the report as a bundle and return the folder.

    The files are written to a hidden folder beside it, flushed to the disk and renamed, so a crash leaves
    no half bundle under the name. `MANIFEST.sha256` can be checked with `sha256sum -c`.

    Raises:
        BundleError: The folder exists and is not empty, cannot be written, or the report holds a number
            that is not finite.
    """
    target = Path(directory).absolute()
    _refuse_existing(target)
    files = bundle_files(report, samples)
    hidden = target.with_name(f".{target.name}.{token_hex(4)}.part")
    try:
        hidden.mkdir(parents=True)
        for name, content in files.items():
            _write(hidden / name, content)
        hidden.rename(target)
    except OSError as error:
        raise BundleError(f"cannot write the bundle {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target


def bundle_files(report: Report, samples: SampleFormat = "auto") -> dict[str, bytes]:
    """Return the files of a bundle by name."""
    rows = rows_by_table(report)
    files = {f"{table.name}.csv": table_bytes(table, rows[table.name]) for table in TABLES if table.format == "csv"}
    name, content = sample_file(report, samples)
    files[name] = content
    files[MANIFEST] = manifest(files)
    return files


def _refuse_existing(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        raise BundleError(
            f"{target} exists and is not an empty folder; a bundle is made once: "
            "give another folder, or move this one away"
        )


def manifest(files: Mapping[str, bytes]) -> bytes:
    """Return the lines that `sha256sum -c` reads."""
    lines = (f"{sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    return "".join(lines).encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
