"""Calls a function once a module has been imported by somebody else. Imports none itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class LateImport(MetaPathFinder):
    """Waits for the first import of a module; the module keeps its own loader, and the import its own errors.

    Args:
        name: The module.
        loaded: Called on the importing thread, when the module's own code has run.
    """

    def __init__(self, name: str, loaded: Callable[[], None]) -> None:
        self._name = name
        self._loaded = loaded
        self._searching = False
        sys.meta_path.insert(0, self)

    def cancel(self) -> None:
        """Wait no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """Return the module's own spec, its loader followed by the call; nothing for any other module."""
        if fullname != self._name or self._searching:
            return None
        self._searching = True
        try:
            spec = find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _FollowedLoader(spec.loader, self)
        return spec

    def module_loaded(self) -> None:
        """Stop to wait, and call the function."""
        self.cancel()
        self._loaded()


class _FollowedLoader(Loader):
    """A module's own loader, with a call when the module has been executed."""

    def __init__(self, loader: Any, late: LateImport) -> None:
        self._loader = loader
        self._late = late

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._late.module_loaded()
