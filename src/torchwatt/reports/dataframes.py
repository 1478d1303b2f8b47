"""A report's tables as pandas data frames."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import fsum
from typing import TYPE_CHECKING, Any

import numpy as np

from torchwatt.core.ledger import Entry, common_work, sum_if_known, total_self_j
from torchwatt.core.report import Report, Window
from torchwatt.core.requests import figures_by_part
from torchwatt.core.terms import VALIDATION
from torchwatt.core.trace import FlopCeiling
from torchwatt.core.units import NS_PER_S, ns_from_s
from torchwatt.views import LAYER_COLUMNS, View, layer_groups, layer_rows
from torchwatt.views.rank_table import rank_energy_j

if TYPE_CHECKING:
    import pandas as pd


OUTSIDE_EPOCHS = "(outside)"
PAUSE_KINDS = ("evaluation", "checkpoint")
EPOCH_COLUMNS = (
    "epoch", "start_s", "duration_s", "steps", "energy_j", "train_j", "evaluation_j", "checkpoint_j", "step_j",
)  # fmt: skip


def epoch_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row per epoch, and one for the time outside of all epochs; their joules add up to the report's.

    `steps` counts training steps.
    `energy_j` is the sum of `train_j`, `evaluation_j` and `checkpoint_j`; `step_j` is `train_j` per step. A value is
    None if a meter did not cover the whole interval.
    """
    epochs = [window for window in report.windows if window.kind == "epoch"]
    if not epochs:
        return []
    pauses = sorted((w for w in report.windows if w.kind in PAUSE_KINDS), key=lambda w: w.start_ns)
    begun = [pause.start_ns for pause in pauses]
    training = [step for step in report.steps if step.stage != VALIDATION]
    ends, done = [step.end_ns for step in training], [0, *accumulate(step.count for step in training)]
    rows, used = [], 0
    outside_pauses: list[Window] = []
    for epoch in epochs:
        first_pause, end_pause = bisect_left(begun, epoch.start_ns), bisect_left(begun, epoch.end_ns)
        outside_pauses += pauses[used:first_pause]
        used = end_pause
        steps = done[bisect_right(ends, epoch.end_ns)] - done[bisect_right(ends, epoch.start_ns)]
        rows.append(_epoch_row(report, epoch, pauses[first_pause:end_pause], steps))
    inside_j = sum_if_known(epoch.energy_j for epoch in epochs)
    outside_j = None if inside_j is None or report.energy_j is None else report.energy_j - inside_j
    outside = {
        "epoch": OUTSIDE_EPOCHS,
        "start_s": None,
        "duration_s": report.duration_s - fsum(row["duration_s"] for row in rows),
        "steps": done[-1] - sum(row["steps"] for row in rows),
        **_epoch_energies([*outside_pauses, *pauses[used:]], outside_j),
        "step_j": None,
    }
    return [*rows, outside]


def _epoch_row(report: Report, epoch: Window, pauses: Sequence[Window], steps: int) -> dict[str, Any]:
    parts = _epoch_energies(pauses, epoch.energy_j)
    train_j = parts["train_j"]
    return {
        "epoch": epoch.name.removeprefix("epoch "),
        "start_s": (epoch.start_ns - report.start_ns) / NS_PER_S,
        "duration_s": (epoch.end_ns - epoch.start_ns) / NS_PER_S,
        "steps": steps,
        **parts,
        "step_j": None if train_j is None or not steps else train_j / steps,
    }


def _epoch_energies(pauses: Sequence[Window], energy_j: float | None) -> dict[str, float | None]:
    paused = {f"{kind}_j": sum_if_known(w.energy_j for w in pauses if w.kind == kind) for kind in PAUSE_KINDS}
    complete_j = sum_if_known([energy_j, *paused.values()])
    train_j = None if complete_j is None else fsum(((energy_j or 0.0), *(-(x or 0.0) for x in paused.values())))
    return {"energy_j": energy_j, "train_j": train_j, **paused}


RANK_COLUMNS = (
    "rank", "node", "local_rank", "status", "start_s", "end_s", "steps", "energy_j", "energy_device_j",
    "energy_host_j", "energy_communication_j", "cpu_s", "reason",
)  # fmt: skip


def layer_frame(report: Report) -> pd.DataFrame:
    """Return one row per (domain, layer, phase), most joules first within its domain."""
    import pandas as pd

    rows = [{key: _escape_surrogates(value) for key, value in row.items()} for row in layer_rows(report)]
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


GROUP_COLUMNS = (
    "name", "modules", "energy_j", "energy_lo_j", "energy_hi_j", "energy_share", "each_lo_j", "each_hi_j", "forward_j",
    "backward_j", "method", "provenance", "tied", "depth", "energy_total_j", "flops", "bytes_moved",
    "energy_per_tflop_j",
)  # fmt: skip


def group_frame(report: Report, by: View) -> pd.DataFrame:
    """Return one row per group of a view; `energy_j` adds up to the report's. See `views.layer_groups`."""
    import pandas as pd

    rows = [
        {
            "name": _escape_surrogates(group.name),
            "modules": group.count,
            "energy_j": group.energy_j,
            "energy_lo_j": group.lo_j,
            "energy_hi_j": group.hi_j,
            "energy_share": group.share,
            "each_lo_j": group.each_lo_j,
            "each_hi_j": group.each_hi_j,
            "forward_j": group.phases.get("forward"),
            "backward_j": group.phases.get("backward"),
            "method": group.method,
            "provenance": group.provenance,
            "tied": group.unclear,
            "depth": group.depth,
            "energy_total_j": group.total_j,
            "flops": common_work(group.entries, "flops"),
            "bytes_moved": common_work(group.entries, "bytes_moved"),
            "energy_per_tflop_j": group.energy_per_tflop_j,
        }
        for group in layer_groups(report, by)
    ]
    return pd.DataFrame(rows, columns=list(GROUP_COLUMNS))


UTILISATION_COLUMNS = (
    "fqn", "phase", "stage", "domain", "dtype", "flops", "time_self_s", "flops_per_s", "flop_utilisation",
)  # fmt: skip


def utilisation_frame(report: Report, ceiling: FlopCeiling, *, autocast: bool) -> pd.DataFrame:
    """Return a row per row of `layer_frame` with known operations on the ceiling's device, most time first."""
    import pandas as pd

    kind, _, index = ceiling.device.partition(":")
    domains = [ledger.domain for ledger in report.counted if ledger.domain.kind == ("cpu" if kind == "cpu" else "gpu")]
    if kind != "cpu" and len(domains) > 1:
        domains = [domain for domain in domains if domain.index == int(index or 0)]
    names = {str(domain) for domain in domains}
    rows = []
    for row in layer_rows(report):
        if row["domain"] not in names:
            continue
        if not row["flops"] or not row["time_self_s"] or not (autocast or row["dtype"] in {None, ceiling.dtype}):
            continue
        rate = row["flops"] / row["time_self_s"]
        rows.append(row | {"flops_per_s": rate, "flop_utilisation": rate / ceiling.flops_per_s})
    rows.sort(key=lambda row: -row["time_self_s"])
    return pd.DataFrame(rows, columns=list(UTILISATION_COLUMNS))


EXPERT_COLUMNS = ("layer", "expert", "stage", "tokens", "energy_j", "energy_per_token_j")
_EXPERT = re.compile(r"(?P<layer>.*\bexperts)\.(?P<expert>\d+)(?:\.|$)")


def expert_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row per expert of a mixture and stage, of experts that are modules in a list named `experts`.

    Joules are those of the expert's modules in all phases and counted domains. Tokens are the rows of the input of its
    layers; None where these are unknown, also in runs read from a bundle.
    """
    parts: dict[tuple[str, int, str], list[Entry]] = defaultdict(list)
    for ledger in report.counted:
        for entry in ledger.entries:
            if match := _EXPERT.match(entry.fqn):
                parts[match["layer"], int(match["expert"]), entry.stage].append(entry)
    rows = []
    for (layer, expert, stage), entries in sorted(parts.items()):
        energy_j = total_self_j(entries)
        tokens = max((entry.input_rows for entry in entries if entry.input_rows is not None), default=None)
        each_j = energy_j / tokens if tokens else None
        rows.append(dict(zip(EXPERT_COLUMNS, (layer, expert, stage, tokens, energy_j, each_j), strict=True)))
    return rows


def expert_frame(report: Report) -> pd.DataFrame:
    """Return `expert_rows` as a data frame."""
    import pandas as pd

    return pd.DataFrame(expert_rows(report), columns=list(EXPERT_COLUMNS))


def _escape_surrogates(value: object) -> object:
    """Escape unpaired surrogates, which a module name may contain and an Arrow column cannot."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def sample_frame(report: Report) -> pd.DataFrame:
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


def step_frame(report: Report) -> pd.DataFrame:
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
            "energy_j": _total_j(step.energy_j, counted),
            **{f"energy_{name}_j": step.energy_j.get(name) for name in domains},
        }
        for step in report.steps
    ]
    columns = ["step", "steps", "stage", "start_s", "duration_s", "energy_j", *(f"energy_{name}_j" for name in domains)]
    return pd.DataFrame(rows, columns=columns)


def _total_j(energy_j: Mapping[str, float], counted: Sequence[str]) -> float | None:
    """Add up the counted domains; None if one of them is unknown for this step."""
    parts = [energy_j[domain] for domain in counted if domain in energy_j]
    return sum(parts) if parts and len(parts) == len(counted) else None


TOKEN_COLUMNS = (
    "request", "stage", "input_tokens", "cached_tokens", "output_tokens", "drafted_tokens", "accepted_tokens",
    "time_s", "energy_j", "energy_lo_j", "energy_hi_j",
)  # fmt: skip


def token_frame(report: Report) -> pd.DataFrame:
    """Return one row per request and stage; `prefill` and `decode` exist for each request.

    Token counts are the whole request's, repeated in its rows; time and joules are the stage's. The interval is what
    another repeat would give (90 %), for stages of at least a twelfth of the run.
    """
    import pandas as pd

    rows = []
    for row in report.tokens:
        lo_j, hi_j = report.repeat_interval_j(row.energy_j, ns_from_s(row.time_s or 0.0)) or (None, None)
        rows.append(
            {
                "request": row.request,
                "stage": row.stage,
                "input_tokens": row.input_tokens,
                "cached_tokens": row.cached_tokens,
                "output_tokens": row.output_tokens,
                "drafted_tokens": row.drafted_tokens,
                "accepted_tokens": row.accepted_tokens,
                "time_s": row.time_s,
                "energy_j": row.energy_j,
                "energy_lo_j": lo_j,
                "energy_hi_j": hi_j,
            }
        )
    counts = [name for name in TOKEN_COLUMNS if name.endswith("_tokens")]
    return pd.DataFrame(rows, columns=list(TOKEN_COLUMNS)).astype(dict.fromkeys(counts, "Int64"))


def generation_frame(report: Report) -> pd.DataFrame:
    """Return the figures of generation by name (NVIDIA AIPerf's), in columns `all`, `warm_up` and `steady`.

    The first call is the warm-up; with one call there is only `all`. `boundary` names the domains of the joules.
    """
    import pandas as pd

    parts = figures_by_part(report.tokens) if report.tokens else {}
    columns = {name: [figure.value for figure in figures] for name, figures in parts.items()}
    figures = parts.get("all", ())
    frame = pd.DataFrame(columns, index=pd.Index([figure.name for figure in figures], name="figure"), dtype=float)
    frame["unit"] = [figure.unit for figure in figures]
    frame["boundary"] = report.boundary
    return frame


def position_frame(report: Report) -> pd.DataFrame:
    """Return one row per group of positions of output tokens: 0, 1 to 15, 16 to 31, 32 to 63, ..."""
    import pandas as pd

    rows = [
        {
            "first": position.first,
            "last": position.last,
            "tokens": position.tokens,
            "time_per_token_s": position.each_s,
            "energy_per_token_j": position.each_j,
        }
        for position in report.positions
    ]
    return pd.DataFrame(rows, columns=["first", "last", "tokens", "time_per_token_s", "energy_per_token_j"])


def epoch_frame(report: Report) -> pd.DataFrame:
    """Return one row per epoch of a training that reports epochs, and one for the time outside of them."""
    import pandas as pd

    return pd.DataFrame(epoch_rows(report), columns=list(EPOCH_COLUMNS))


def event_frame(report: Report) -> pd.DataFrame:
    """Return one row per event."""
    import pandas as pd

    rows = [
        {
            "t_s": (event.t_ns - report.start_ns) / NS_PER_S,
            "severity": event.severity,
            "code": event.code,
            "subject": _escape_surrogates(event.subject),
            "message": _escape_surrogates(event.message),
        }
        for event in report.events
    ]
    return pd.DataFrame(rows, columns=["t_s", "severity", "code", "subject", "message"])


def rank_frame(report: Report) -> pd.DataFrame:
    """Return one row per rank of a job; times in seconds since the job began, missing where unknown."""
    import pandas as pd

    rows = [
        {
            "rank": part.rank,
            "node": part.node,
            "local_rank": part.local_rank,
            "status": part.status,
            "start_s": _seconds_since_start(report, part.start_ns),
            "end_s": _seconds_since_start(report, part.end_ns),
            "steps": part.step_count,
            "energy_j": part.energy_j,
            "energy_device_j": rank_energy_j(part, host=False),
            "energy_host_j": rank_energy_j(part, host=True),
            "energy_communication_j": part.communication_j,
            "cpu_s": part.cpu_s,
            "reason": _escape_surrogates(part.reason),
        }
        for part in report.ranks
    ]
    return pd.DataFrame(rows, columns=list(RANK_COLUMNS))


def _seconds_since_start(report: Report, t_ns: int | None) -> float | None:
    return None if t_ns is None else (t_ns - report.start_ns) / NS_PER_S
