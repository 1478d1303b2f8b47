"""A helper process that looks whether an object store answers: clients of some retry for minutes, or abort."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from torchwatt.core.errors import ConfigError
from torchwatt.helper_process import helper_command

ANSWER_S = 20.0  # a client finds its credentials and the bucket's region in that time
LONGEST = 300  # characters of what a client says; the first ones name the cause


def check_reachable(address: str) -> None:
    """Ask an object store for information on the path of an address, in a process of its own.

    Raises:
        ConfigError: It does not answer within `ANSWER_S` seconds, or its client fails.
    """
    command = helper_command("torchwatt.audit.fleet.probe", address)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"lake {address}: no answer within {ANSWER_S:g} s; is there a network?") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"its client ended by {done.returncode}"]
        raise ConfigError(f"lake {address}: {said[-1][:LONGEST]}")


def main(arguments: Sequence[str]) -> int:
    """Ask for the path of one address; the last line of stderr is why that failed."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(arguments[0])
        system.get_file_info(path)
    except (ArrowException, OSError, ValueError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 1
    return 0
