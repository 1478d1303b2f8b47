"""Imports optional packages, with one error type if they are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torchwatt.core.errors import TorchwattError
from torchwatt.core.extras import install_command


class MissingPackageError(TorchwattError, ImportError):
    """The package of an integration cannot be imported; the message contains the install command."""


def import_optional(module: str, integration: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        MissingPackageError: The import fails.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        text = f"torchwatt.integrations.{integration} cannot load {package} ({error}): {install_command(package)}"
        raise MissingPackageError(text) from error
