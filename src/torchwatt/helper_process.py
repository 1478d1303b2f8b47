"""Commands of other programs: isolated helper processes of torchwatt, and system tools by absolute path.

A helper process imports only torchwatt, the standard library and installed packages: no file in the current folder,
beside the user's script, in PYTHONPATH or in a user's `usercustomize` can replace a module that it imports.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import sys
from pathlib import Path

# -I: without the current folder, PYTHON* variables and the user's site; -S: runs no .pth file, and starts faster; -B:
# writes no bytecode. The finder looks for `torchwatt` in its folder only, and for nothing else there, because a
# checkout may contain other files beside the package.
_START = """
import json, sys
from importlib import import_module
from importlib.machinery import PathFinder
module, home, folders = sys.argv[1:4]
class TorchwattFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [home]) if name == "torchwatt" else None
sys.meta_path.insert(0, TorchwattFinder)
sys.path += json.loads(folders)
sys.exit(import_module(module).main(sys.argv[4:]))
"""
# Detaches the helper from the user's process: the child forks, writes the new process's id and ends. This runs before
# any import, so that the user's process waits only for the start of the interpreter.
_DETACH = """
import os
pid = os.fork()
if pid:
    os.write(1, b"%d" % pid)
    os._exit(0)
os.close(1)
os.open(os.devnull, os.O_WRONLY)
"""
_HOME = Path(__file__).resolve().parents[1]
_INSTALLED = frozenset({"site-packages", "dist-packages"})


def helper_command(module: str, *arguments: str, detached: bool = False) -> list[str]:
    """Return the command that runs `main(arguments)` of a module of torchwatt in an isolated process.

    Args:
        module: Full name of the module.
        arguments: Arguments of `main`.
        detached: The started process forks, writes the child's process id to stdout and ends; the child runs `main`.

    Raises:
        OSError: This interpreter has no executable (Python embedded in a program).
    """
    if not sys.executable:
        raise FileNotFoundError("this Python does not know its executable")
    folders = json.dumps(package_folders(sys.path))
    start = _DETACH + _START if detached else _START
    return [sys.executable, "-I", "-S", "-B", "-c", start, module, str(_HOME), folders, *arguments]


def package_folders(path: list[str], home: Path = _HOME) -> list[str]:
    """Return the entries of an import path with installed packages.

    These are the interpreter's and the user's site-packages, other folders of that name (environment modules of
    clusters put them into PYTHONPATH), and torchwatt's folder if an installer put it there (`pip install --target`) or
    if it is an archive.
    """
    site_folders = set(getattr(site, "getsitepackages", list)())
    if site.ENABLE_USER_SITE:
        site_folders.add(site.getusersitepackages())
    folders = [
        entry
        for entry in path
        if entry in site_folders or (Path(entry).is_absolute() and Path(entry).name in _INSTALLED)
    ]
    if home.is_file() or next(home.glob("torchwatt-*.dist-info"), None) is not None:
        folders.append(str(home))
    return list(dict.fromkeys(folders))


def system_program(name: str) -> str:
    """Return the absolute path of a program, without searching relative entries of PATH such as the current folder.

    Raises:
        FileNotFoundError: The program is not installed.
    """
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(folder).is_absolute()]
    program = shutil.which(name, path=os.pathsep.join(folders)) if folders else None
    if program is None:
        raise FileNotFoundError(f"{name} is not installed")
    return program
