"""Processes that begin with torch and torchwatt imported, which takes seconds: they are forked from one that did it.

For tests of what a program does, not of how it begins and ends: nothing that `atexit` keeps is run in them.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import ModuleType
from typing import Any

import pytest

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NVML = "libnvidia-ml.so.1"
_ADDRESS = ("_forkserver_address", "_forkserver_authkey")  # the second from Python 3.14 on
_starting = Lock()  # tests begin several processes at once
_context = get_context("forkserver")
_context.set_forkserver_preload(["tests.support.ready_imports"])


def shared() -> dict[str, Any]:
    """Start the process that is forked from; return what `use_shared` needs to fork from it in other processes."""
    start()
    return {name: getattr(forkserver._forkserver, name) for name in _ADDRESS if hasattr(forkserver._forkserver, name)}


def use_shared(address: Mapping[str, Any]) -> None:
    """Fork from the process that another one has started, and that ends with that one."""
    for name, value in address.items():
        setattr(forkserver._forkserver, name, value)
    # Children hold this file open to keep their server: here it is not theirs to keep.
    forkserver._forkserver._forkserver_alive_fd = os.open(os.devnull, os.O_WRONLY)
    forkserver._forkserver.ensure_running = lambda: None


def start() -> None:
    """Start the process that is forked from, unless it runs; `multiprocessing` forks from it too."""
    with _starting, pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_THREAD.items():
            patch.setenv(name, value)
        forkserver._forkserver.ensure_running()


def call(
    function: Callable[..., object], *arguments: Any, timeout_s: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Call a function of a module in a process of its own; return its exit status and what it wrote.

    The environment is this process's if none is given. The library of NVML is taken from LD_LIBRARY_PATH.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
    """
    start()
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("stdout", "stderr")]
        variables = dict(os.environ if env is None else env)
        process = _context.Process(target=_in_place, args=(paths, variables, function, arguments))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([function.__name__], timeout_s)
        stdout, stderr = (path.read_text() if path.exists() else "" for path in paths)
    return subprocess.CompletedProcess([function.__name__], process.exitcode or 0, stdout, stderr)


def run_code(code: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run Python as `python -c` does."""
    return call(_run_code, code, timeout_s=timeout_s)


def run_script(code: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> dict[str, Any]:
    """Run Python as `python -c` does, and return the JSON of its last line."""
    done = call(_run_code, code, timeout_s=timeout_s, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def torchwatt(
    *arguments: object, cwd: str | Path = ".", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of torchwatt, in this process's environment with `env` on top."""
    return call(_torchwatt, list(map(str, arguments)), cwd, timeout_s=170.0, env={**os.environ, **(env or {})})


def run_path(path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a Python file as `python FILE ARGUMENT ...` does."""
    return call(_run_path, path, list(map(str, arguments)), timeout_s=170.0)


def _run_path(path: Path, arguments: list[str]) -> None:
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _torchwatt(arguments: list[str], cwd: str | Path) -> None:
    from torchwatt.__main__ import main

    os.chdir(cwd)
    sys.argv = ["torchwatt", *arguments]
    sys.exit(main(arguments))


def _in_place(
    paths: list[Path], env: dict[str, str], function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    for fd, path in zip((1, 2), paths, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
    os.environ.clear()
    os.environ.update(env)
    for folder in env.get("LD_LIBRARY_PATH", "").split(os.pathsep):  # the loader read the variable long ago
        if folder and (Path(folder) / NVML).is_file():
            ctypes.CDLL(str(Path(folder) / NVML))
    function(*arguments)


def _run_code(code: str) -> None:
    sys.argv = ["-c"]
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), vars(main))  # noqa: S102  a test's own code
