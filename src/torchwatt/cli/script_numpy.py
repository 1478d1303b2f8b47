"""NumPy as a script finds it, although torchwatt needs it before: not imported yet, its BLAS threads not yet chosen.

OpenBLAS starts its threads when NumPy is loaded, as many as the environment says then. A script that chooses them
itself does so before its own `import numpy`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# In the order in which OpenBLAS asks them.
_THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
_SETTERS = tuple(f"{first}openblas_set_num_threads{last}" for first in ("scipy_", "") for last in ("64_", ""))


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Import NumPy without threads of its BLAS, unless it was imported before; the environment stays as it was."""
    if "numpy" in sys.modules:
        yield
        return
    name = _THREADS[0]
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def hide_numpy() -> None:
    """Let the next `import numpy` find it as if for the first time, with threads as the environment says then."""
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "numpy"}
    if "numpy" in hidden:
        sys.meta_path.insert(0, _HiddenNumpy(hidden))
        for name in hidden:
            del sys.modules[name]


class _HiddenNumpy(MetaPathFinder, Loader):
    """Finds the modules of NumPy that are loaded already; its own module's specification stays as it is."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self._modules = modules
        self._spec = modules["numpy"].__spec__

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a specification of NumPy itself: its parts come with it."""
        return ModuleSpec(fullname, self, origin=self._modules["numpy"].__file__) if fullname == "numpy" else None

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        """Return the module that is loaded."""
        return self._modules["numpy"]

    def exec_module(self, module: ModuleType) -> None:
        """Put all modules back, and start the threads."""
        sys.meta_path.remove(self)
        module.__spec__ = self._spec
        sys.modules.update(self._modules)
        _start_blas_threads()


def _start_blas_threads() -> None:
    """Have OpenBLAS use as many threads as it would if it were loaded now; other libraries ask when they are used."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
        processors = len(os.sched_getaffinity(0))
    except (OSError, AttributeError):  # another system: its NumPy has another BLAS, or keeps one thread
        return
    asked = [int(text) for name in _THREADS if (text := os.environ.get(name, "")).isdecimal() and int(text) > 0]
    for path in {line.split(maxsplit=5)[5] for line in maps.splitlines() if "openblas" in line}:
        library = ctypes.CDLL(path)
        for name in _SETTERS:
            if hasattr(library, name):
                getattr(library, name)(min([processors, *asked[:1]]))
                break
