"""Builds the simulated libnvidia-ml.so.1 with the C compiler of this machine, once for each version of its sources."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
LIBRARY = "libnvidia-ml.so.1"
SCENARIO = "NVML_SIMULATOR_SCENARIO"  # the environment variable that names the scenario's file
NO_COMPILER = "no C compiler (cc) to build the simulated NVML; apt install gcc libc6-dev"
FLAGS = ("-O2", "-Wall", "-shared", "-fPIC", "-fvisibility=hidden", f"-Wl,-soname,{LIBRARY}")
BUILDS = Path(__file__).resolve().parents[3] / "build" / "nvml-simulator"


@functools.cache
def library_folder() -> Path:
    """Return the folder of the built library, for LD_LIBRARY_PATH.

    Raises:
        FileNotFoundError: There is no C compiler, and the library is not built yet.
        subprocess.CalledProcessError: The compiler failed; its message is on stderr.
    """
    text = b"".join(source.read_bytes() for source in SOURCES)
    version = hashlib.sha256(text + " ".join(FLAGS).encode()).hexdigest()[:16]
    folder = BUILDS / version
    if not (folder / LIBRARY).is_file():
        if shutil.which("cc") is None:
            raise FileNotFoundError(NO_COMPILER)
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{os.getpid()}.so"  # other workers build at the same time
        files = [source for source in SOURCES if source.suffix == ".c"]
        subprocess.run(["cc", *FLAGS, "-o", fresh, *files, "-lm", "-lpthread"], check=True)
        fresh.replace(folder / LIBRARY)
    return folder
