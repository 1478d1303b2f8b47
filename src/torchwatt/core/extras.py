"""Imports optional packages, and says which extra of torchwatt brings one: the one place that messages use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from torchwatt.core.errors import TorchwattError

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
