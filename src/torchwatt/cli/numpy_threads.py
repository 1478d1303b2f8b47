"""Hides that torchwatt imported NumPy before the script, which may choose its BLAS threads before `import numpy`.

OpenBLAS reads the number of threads from the environment and starts them when NumPy is loaded.
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

# In the order in which OpenBLAS reads them.
_THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
_SETTERS = tuple(f"{prefix}openblas_set_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", ""))


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the block, NumPy is imported with one BLAS thread, unless it is imported already."""
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
    """Make the next `import numpy` behave like the first: it starts the BLAS threads that the environment requests."""
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "numpy"}
    if "numpy" in hidden:
        sys.meta_path.insert(0, _HiddenNumpy(hidden))
        for name in hidden:
            del sys.modules[name]


class _HiddenNumpy(MetaPathFinder, Loader):
    """Import hook that returns the loaded modules of NumPy; the package keeps its original specification."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self._modules = modules
        self._spec = modules["numpy"].__spec__

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a specification of the package `numpy`; its submodules are restored with it."""
        return ModuleSpec(fullname, self, origin=self._modules["numpy"].__file__) if fullname == "numpy" else None

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        """Return the loaded module."""
        return self._modules["numpy"]

    def exec_module(self, module: ModuleType) -> None:
        """Restore all modules of NumPy, and start its BLAS threads."""
        sys.meta_path.remove(self)
        module.__spec__ = self._spec
        sys.modules.update(self._modules)
        _start_blas_threads()


def _start_blas_threads() -> None:
    """Set OpenBLAS to the threads it would start if loaded now; other libraries read the environment at first use."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
        processors = len(os.sched_getaffinity(0))
    except (OSError, AttributeError):  # not Linux: NumPy has another BLAS, or keeps one thread
        return
    thread_counts = [int(text) for name in _THREADS if (text := os.environ.get(name, "")).isdecimal() and int(text) > 0]
    for path in {line.split(maxsplit=5)[5] for line in maps.splitlines() if "openblas" in line}:
        library = ctypes.CDLL(path)
        for name in _SETTERS:
            if hasattr(library, name):
                getattr(library, name)(min([processors, *thread_counts[:1]]))
                break
