"""One clear error where an optional package is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torchwatt.core.errors import TorchwattError


class MissingPackageError(TorchwattError, ImportError):
    """An integration was asked for whose package is not installed; the message says how to get it."""


def needed(module: str, extra: str) -> ModuleType:
    """Return an optional package's module.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        text = f"torchwatt.integrations.{extra} cannot load {package} ({error}): pip install 'torchwatt[{extra}]'"
        raise MissingPackageError(text) from error
