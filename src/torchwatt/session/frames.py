"""A report's tables as pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from torchwatt.core.report import Report
from torchwatt.core.units import NS_PER_S
from torchwatt.session.epochs import COLUMNS, epoch_rows
from torchwatt.views import LAYER_COLUMNS, layer_rows

if TYPE_CHECKING:
    import pandas as pd


def layers(report: Report) -> pd.DataFrame:
    """Return one row per (domain, layer, phase), most joules first within its domain."""
    import pandas as pd

    rows = [{key: _storable(value) for key, value in row.items()} for row in layer_rows(report)]
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


def _storable(value: object) -> object:
    """Write half a surrogate pair as text: a module may be called so, and no Arrow column can hold it."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def samples(report: Report) -> pd.DataFrame:
    """Return the power curve: mean watts since the reading before, and joules since the start, per domain."""
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
    """Return one row per step, in a long run per `steps` of them: what it did, when, how long, joules if known."""
    import pandas as pd

    domains = [str(ledger.domain) for ledger in report.counted]
    rows = [
        {
            "step": step.index,
            "steps": step.count,
            "stage": step.stage,
            "start_s": (step.start_ns - report.start_ns) / NS_PER_S,
            "duration_s": (step.end_ns - step.start_ns) / NS_PER_S,
            "energy_j": sum(step.energy_j.values()) if len(step.energy_j) == len(domains) > 0 else None,
            **{f"energy_{name}_j": step.energy_j.get(name) for name in domains},
        }
        for step in report.steps
    ]
    columns = ["step", "steps", "stage", "start_s", "duration_s", "energy_j", *(f"energy_{name}_j" for name in domains)]
    return pd.DataFrame(rows, columns=columns)


def epochs(report: Report) -> pd.DataFrame:
    """Return one row per epoch of a training that told of its epochs, and one for what lay outside of them."""
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
