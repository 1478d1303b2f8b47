"""How torchwatt starts other programs: its own helper processes isolated, and tools of the system by absolute path.

A helper process runs code of torchwatt, the standard library and the folders that packages are installed in, and
nothing else: no file in the current folder, beside the user's script, in PYTHONPATH or in a user's `usercustomize` can
replace a module that it imports.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import sys
from pathlib import Path

# -I: neither the current folder, nor PYTHON* variables, nor the user's site; -S: no .pth file is run, which also starts
# faster; -B: nothing is written. `torchwatt` is found in its own folder only, and that folder holds nothing else for
# the helper: in a checkout there may be anything beside the package.
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
# A helper that is no child of the user's process: the child of a child, which writes its process id and ends. Before
# anything is imported, so that the user's process waits for the start of the interpreter only.
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
        module: Its full name.
        arguments: What `main` gets.
        detached: The process is a child of the one that is started, which writes its process id to stdout and ends.

    Raises:
        OSError: This interpreter has no executable, so that nothing can be started (Python embedded in a program).
    """
    if not sys.executable:
        raise FileNotFoundError("this Python does not know its executable")
    folders = json.dumps(package_folders(sys.path))
    start = _DETACH + _START if detached else _START
    return [sys.executable, "-I", "-S", "-B", "-c", start, module, str(_HOME), folders, *arguments]


def package_folders(path: list[str], home: Path = _HOME) -> list[str]:
    """Return the entries of an import path that packages are installed in.

    These are the interpreter's and the user's site-packages, folders of that name (a cluster's modules put them into
    PYTHONPATH), and the folder of torchwatt itself where an installer put it there (`pip install --target`) or where it
    is an archive.
    """
    known = set(getattr(site, "getsitepackages", list)())
    if site.ENABLE_USER_SITE:
        known.add(site.getusersitepackages())
    found = [
        entry for entry in path if entry in known or (Path(entry).is_absolute() and Path(entry).name in _INSTALLED)
    ]
    if home.is_file() or next(home.glob("torchwatt-*.dist-info"), None) is not None:
        found.append(str(home))
    return list(dict.fromkeys(found))


def system_program(name: str) -> str:
    """Return the absolute path of a program; relative entries of PATH, such as the current folder, are not searched.

    Raises:
        FileNotFoundError: It is not installed.
    """
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(folder).is_absolute()]
    found = shutil.which(name, path=os.pathsep.join(folders)) if folders else None
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found
