"""`torchwatt` and `python -m torchwatt`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from torchwatt.cli.numpy_threads import one_blas_thread

    arguments = sys.argv[1:] if argv is None else argv
    with one_blas_thread() if arguments[:1] == ["run"] else nullcontext():
        from torchwatt.cli.command_parser import run_command

    return run_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
