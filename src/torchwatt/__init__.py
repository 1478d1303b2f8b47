"""torchwatt: measures the energy of PyTorch runs, and attributes it to layers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torchwatt.core import __version__

if TYPE_CHECKING:
    from torchwatt import metrics
    from torchwatt.distributed.job_folder import merge
    from torchwatt.integrations.mlflow import log_to_mlflow
    from torchwatt.journal.recovery import recover
    from torchwatt.offline.layer_power import replay
    from torchwatt.offline.layer_replay import measure_flop_ceiling, work_of
    from torchwatt.offline.trace_attribution import attribute
    from torchwatt.session.profile import profile, scope, stage
    from torchwatt.session.run import Run

__all__ = [
    "Run",
    "__version__",
    "attribute",
    "log_to_mlflow",
    "measure_flop_ceiling",
    "merge",
    "metrics",
    "profile",
    "recover",
    "replay",
    "scope",
    "stage",
    "work_of",
]

# Module of each public name, imported at first use to keep `import torchwatt` cheap.
_HOMES = {
    "Run": "torchwatt.session",
    "attribute": "torchwatt.offline.trace_attribution",
    "log_to_mlflow": "torchwatt.integrations.mlflow",
    "measure_flop_ceiling": "torchwatt.offline.layer_replay",
    "metrics": "torchwatt",
    "merge": "torchwatt.distributed.job_folder",
    "profile": "torchwatt.session",
    "recover": "torchwatt.journal.recovery",
    "replay": "torchwatt.offline.layer_power",
    "scope": "torchwatt.session",
    "stage": "torchwatt.session",
    "work_of": "torchwatt.offline.layer_replay",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'torchwatt' has no attribute {name!r}")
    from importlib import import_module

    value = import_module("torchwatt.metrics") if name == "metrics" else getattr(import_module(home), name)
    if name == "profile" and "IPython" in sys.modules:
        from torchwatt.notebook.notebook_view import install_notebook_view

        install_notebook_view()
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def load_ipython_extension(shell: Any) -> None:
    """Register `%energy` and `%%energy`; called by `%load_ext torchwatt`."""
    from torchwatt.notebook.energy_magic import load_magics

    load_magics(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Remove the magics; called by `%unload_ext torchwatt`."""
    from torchwatt.notebook.energy_magic import unload_magics

    unload_magics(shell)
