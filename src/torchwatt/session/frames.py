"""A report's tables as pandas data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchwatt.core.report import Report
from torchwatt.core.units import NS_PER_S
from torchwatt.session.epochs import COLUMNS, epoch_rows
from torchwatt.views import LAYER_COLUMNS, layer_rows
from torchwatt.views.ranks import device_j

if TYPE_CHECKING:
    import pandas as pd

RANK_COLUMNS = (
    "rank", "node", "local_rank", "status", "start_s", "end_s", "steps", "energy_j", "energy_device_j",
    "energy_host_j", "energy_communication_j", "cpu_s", "reason",
)  # fmt: skip


def layers(report: Report) -> pd.DataFrame:
    """Return one row per (domain, layer, phase), most joules first within its domain."""
    import pandas as pd

    rows = [{key: _storable(value) for key, value in row.items()} for row in layer_rows(report)]
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


def _storable(value: object) -> object:
    """Escape unpaired surrogates, which a module name may contain and an Arrow column cannot."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def samples(report: Report) -> pd.DataFrame:
    """Return the power curve per domain: mean watts since the previous reading, and joules since the start."""
    import pandas as pd

    parts = [
        pd.DataFrame(
            {
                "domain": str(curve.domain),
                "t_s": (curve.t_ns - report.start_ns) / NS_PER_S,
                "time_utc": pd.to_datetime(curve.t_ns - report.start_ns + report.start_unix_ns, utc=True),
                "power_w": np.concatenate(([np.nan], curve.power_w())),
                "energy_j": curve.energy_j,
            }
        )
        for curve in report.curves
    ]
    columns = ["domain", "t_s", "time_utc", "power_w", "energy_j"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def steps(report: Report) -> pd.DataFrame:
    """Return one row per step, in a long run per group of `steps` steps: stage, start, duration, joules."""
    import pandas as pd

    domains = [str(ledger.domain) for ledger in report.ledgers]
    counted = [str(ledger.domain) for ledger in report.counted]
    rows = [
        {
            "step": step.index,
            "steps": step.count,
            "stage": step.stage,
            "start_s": (step.start_ns - report.start_ns) / NS_PER_S,
            "duration_s": (step.end_ns - step.start_ns) / NS_PER_S,
            "energy_j": _all_j(step.energy_j, counted),
            **{f"energy_{name}_j": step.energy_j.get(name) for name in domains},
        }
        for step in report.steps
    ]
    columns = ["step", "steps", "stage", "start_s", "duration_s", "energy_j", *(f"energy_{name}_j" for name in domains)]
    return pd.DataFrame(rows, columns=columns)


def _all_j(energy_j: Mapping[str, float], counted: Sequence[str]) -> float | None:
    """Add up the counted domains; None if one of them is unknown for this step."""
    parts = [energy_j[domain] for domain in counted if domain in energy_j]
    return sum(parts) if parts and len(parts) == len(counted) else None


def epochs(report: Report) -> pd.DataFrame:
    """Return one row per epoch of a training that reports epochs, and one for the time outside of them."""
    import pandas as pd

    return pd.DataFrame(epoch_rows(report), columns=list(COLUMNS))


def events(report: Report) -> pd.DataFrame:
    """Return one row per event."""
    import pandas as pd

    rows = [
        {
            "t_s": (event.t_ns - report.start_ns) / NS_PER_S,
            "severity": event.severity,
            "code": event.code,
            "subject": _storable(event.subject),
            "message": _storable(event.message),
        }
        for event in report.events
    ]
    return pd.DataFrame(rows, columns=["t_s", "severity", "code", "subject", "message"])


def ranks(report: Report) -> pd.DataFrame:
    """Return one row per rank of a job; times in seconds since the job began, missing where unknown."""
    import pandas as pd

    rows = [
        {
            "rank": part.rank,
            "node": part.node,
            "local_rank": part.local_rank,
            "status": part.status,
            "start_s": _since(report, part.start_ns),
            "end_s": _since(report, part.end_ns),
            "steps": part.step_count,
            "energy_j": part.energy_j,
            "energy_device_j": device_j(part, host=False),
            "energy_host_j": device_j(part, host=True),
            "energy_communication_j": part.communication_j,
            "cpu_s": part.cpu_s,
            "reason": _storable(part.reason),
        }
        for part in report.ranks
    ]
    return pd.DataFrame(rows, columns=list(RANK_COLUMNS))


def _since(report: Report, t_ns: int | None) -> float | None:
    return None if t_ns is None else (t_ns - report.start_ns) / NS_PER_S
