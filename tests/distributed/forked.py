"""torchrun whose ranks are forked once torch is imported, which takes each of them seconds otherwise.

Agents, rendezvous and environment are torchrun's own; only the start of a rank's process is not.
"""

from __future__ import annotations

import runpy
import sys

from torch.distributed import fsdp
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from tests.support import ready_imports

__all__ = ["fsdp", "ready_imports"]  # imported for the ranks


def rank(script: str, *arguments: str) -> None:
    """Run a script as the main program."""
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def main(arguments: list[str]) -> None:
    """Launch a script as `python -m torch.distributed.run` does, with the same arguments."""
    given = parse_args(arguments)
    config, _, _ = config_from_args(given)
    config.start_method = "fork"
    elastic_launch(config, rank)(given.training_script, *given.training_script_args)


if __name__ == "__main__":
    main(sys.argv[1:])
