"""`torchwatt run SCRIPT ARGS`: somebody's script as it is, under the profiler."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchwatt.core.errors import ConfigError
from torchwatt.session import profile


def run_script(script: str, args: Sequence[str], *, module: bool, quiet: bool, options: dict[str, Any]) -> int:
    """Run a script as `python SCRIPT ARGS` would, and print the report to stderr.

    The script's own exit code and its own exception are what the caller gets: both pass through untouched, after
    the report of what ran until then.

    Raises:
        ConfigError: There is no such script.
    """
    if not module and not Path(script).is_file():
        raise ConfigError(f"no such script: {script}")
    run = None
    try:
        with _as_main(script, args, module=module), profile(name=Path(script).name, **options) as run:
            if module:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
    finally:
        if run is not None and not quiet:
            print(run, file=sys.stderr)
    return 0


@contextmanager
def _as_main(script: str, args: Sequence[str], *, module: bool) -> Iterator[None]:
    """Set `sys.argv` and `sys.path[0]` as Python does for a script, and put them back."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *args]
    sys.path[0] = "" if module else str(Path(script).resolve().parent)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
