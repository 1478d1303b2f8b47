"""Files of a report, written only when asked for."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path

from torchwatt.audit import SampleFormat, Seal, write_bundle
from torchwatt.audit.store import Store
from torchwatt.core.errors import BundleError
from torchwatt.core.report import Report
from torchwatt.disk.private import new_file, private_folder
from torchwatt.session.options import Options
from torchwatt.views import to_html_page

# A project's chain and key are named once and hold for every way to write a bundle: notebook, command line, Python.
CHAIN = "TORCHWATT_CHAIN"
KEY = "TORCHWATT_SIGN_KEY"


def write_all(report: Report, asked: Options) -> bool:
    """Write what a session was asked for; whether all of it was. What fails is a warning, and the rest is written."""
    whole = True
    keep = partial(keep_run, project=asked.project)
    for target, write in ((asked.csv, write_csv), (asked.html, write_html), (asked.keep, keep)):
        if target is None:
            continue
        try:
            write(report, target)
        except Exception as error:  # a full disk must not take the user's exception's place
            whole = False
            warnings.warn(f"torchwatt could not write {target}: {error}", RuntimeWarning, stacklevel=2)
    return whole


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
    seal = Seal(_path(chain, CHAIN), _path(sign_key, KEY))
    return write_bundle(report, directory, samples=samples, overwrite=overwrite, seal=seal)


def _path(given: str | os.PathLike[str] | None, variable: str) -> Path | None:
    found = given or os.environ.get(variable)
    return Path(found) if found else None


def keep_run(report: Report, store: str | os.PathLike[str] | None, project: str) -> Path:
    """Keep a run in a store, by default the user's.

    Raises:
        BundleError: The run is kept already, or cannot be written.
        ConfigError: The project's name is no name.
    """
    return Store(store).keep(report, project)


def write_html(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write one self-contained page; never over an existing file.

    Raises:
        BundleError: The file exists or cannot be written.
    """
    target = Path(path)
    try:
        private_folder(target.parent)
        page = to_html_page(report).encode()
        with new_file(target) as file:
            whole = False
            try:
                file.write(page)
                file.flush()
                whole = True
            finally:
                if not whole:  # a full disk: half a page is none
                    target.unlink(missing_ok=True)
    except FileExistsError as error:
        raise BundleError(f"{target} exists already: name another file, or move it") from error
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror}") from error
    return target
