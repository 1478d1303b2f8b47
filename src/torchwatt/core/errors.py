"""The exceptions of torchwatt, and the import of optional packages, which may be missing.

TorchwattError
├── ConfigError    an argument is invalid: names the argument and the fix
├── SensorError    a meter could not be read: names the domain and the cause
├── TraceError     a span or a trace is inconsistent
├── LedgerError    the entries of a domain do not add up to its meter
├── FactorError    there is no carbon factor for the request
└── BundleError    a bundle cannot be written or read
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from torchwatt.core.plain_text import escape_unprintable_lines


class TorchwattError(Exception):
    """Base of every error that torchwatt raises."""


class ConfigError(TorchwattError, ValueError):
    """An argument is invalid; the message names the argument and the fix."""


class SensorError(TorchwattError, OSError):
    """A meter could not be read; `code` is the event code of the cause."""

    def __init__(self, message: str, *, code: str = "SENSOR_ERROR") -> None:
        super().__init__(message)
        self.code = code


class TraceError(TorchwattError):
    """A span or a trace is inconsistent."""


class LedgerError(TorchwattError):
    """The entries of a domain do not add up to its meter."""


class FactorError(TorchwattError, LookupError):
    """There is no carbon factor for the request."""


class BundleError(TorchwattError):
    """A bundle cannot be written or read."""


def warn(message: str, *, stacklevel: int = 2) -> None:
    """Issue a RuntimeWarning; if it cannot be shown or filters turn it into an error, do nothing.

    A script may have closed its `sys.stderr`, or run with `-W error`.
    """
    with contextlib.suppress(Exception):
        warnings.warn(escape_unprintable_lines(message), RuntimeWarning, stacklevel=stacklevel + 1)


# Name of the import -> extra, as in pyproject.toml.
EXTRA_OF: Mapping[str, str] = {
    "accelerate": "trainer",
    "duckdb": "fleet",
    "ecologits": "ecologits",
    "lightning": "lightning",
    "mlflow": "mlflow",
    "openpyxl": "xlsx",
    "opentelemetry": "otel",
    "prometheus_client": "prometheus",
    "pytorch_lightning": "lightning",
    "sklearn": "demo",
    "spdx_python_model": "spdx",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "transformers": "trainer",
    "wandb": "wandb",
}


def install_command(package: str) -> str:
    """Return the command that installs a package, by the name of its import."""
    extra = EXTRA_OF.get(package)
    return f"pip install {package}" if extra is None else f"pip install 'torchwatt[{extra}]'"


class MissingPackageError(TorchwattError, ImportError):
    """An optional package cannot be imported; the message contains the install command."""


def import_optional(module: str, needed_by: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        MissingPackageError: The import fails.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        text = f"{needed_by} cannot load {package} ({error}): {install_command(package)}"
        raise MissingPackageError(text) from error
