"""Logs a finished run to TensorBoard, Weights & Biases, trackio or MLflow: totals, joules by step, and the layers.

All four get the same names. A logger is imported when it is used, and only a run or writer that the user opened is
written to, so where the values go, and whether over a network, stays the user's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any

from torchwatt.audit.run_rows import functional_unit, measurement_level
from torchwatt.core.errors import ConfigError, import_optional
from torchwatt.core.report import Report
from torchwatt.core.units import NS_PER_S, kwh_from_j
from torchwatt.views import LAYER_COLUMNS, layer_rows
from torchwatt.views.energy_rates import step_j

LAYER_TABLE = "energy/layers"
STEP_SERIES = "energy_per_step"
STEP_COUNTER = "energy_per_step/step"  # the x axis of the series in Weights & Biases
MLFLOW_FILE = "torchwatt/layers.json"
MLFLOW_BATCH = 1000  # the most metrics that MLflow takes at once
TEXT_COLUMNS = (
    "domain", "fqn", "phase", "energy_self_j", "energy_self_lo_j", "energy_self_hi_j", "energy_share", "provenance",
)  # fmt: skip
MAX_TEXT_ROWS = 1000
_NEEDED_BY = "run.log_to"


@dataclass(frozen=True, slots=True)
class StepValue:
    """One value of a series at the end of a step, or of several steps as their mean."""

    name: str
    value: float
    step: int
    unix_ns: int


def log_report(report: Report, target: Any) -> None:
    """Log a finished run.

    Args:
        report: The run.
        target: A writer or run of one of the libraries, or a name: `wandb`, `trackio` and `mlflow` are their active
            runs; `tensorboard` is a new `SummaryWriter()`, `tensorboard:DIR` one that writes to this folder.

    Raises:
        ConfigError: The run has not ended, the target is none of these, or no run is active.
        MissingPackageError: The library is not installed.
    """
    if report.status == "running":
        raise ConfigError("the run has not ended: log it after its block")
    name, _, place = target.partition(":") if isinstance(target, str) else (_library_of(target), "", "")
    log = _LOGGERS.get(name)
    if log is None or (place and name != "tensorboard"):
        raise ConfigError(
            f"log_to({target!r}): give a SummaryWriter, a run of wandb, trackio or mlflow, or one of the names "
            f"{', '.join(_LOGGERS)}, tensorboard:DIR"
        )
    log(report, place or None if isinstance(target, str) else target)


def _library_of(target: Any) -> str:
    """Return the library that made an object, by the modules of its classes; "" if it is none of ours."""
    if getattr(target, "__name__", "") in _LOGGERS:  # the module itself
        return str(target.__name__)
    packages = {"tensorboardX": "tensorboard", "torch": "tensorboard"}
    modules = [kind.__module__.partition(".")[0] for kind in type(target).__mro__]
    names = [packages.get(module, module) for module in modules]
    if "tensorboard" in names and not hasattr(target, "add_scalar"):
        return ""
    return next((name for name in names if name in _LOGGERS), "")


def total_metrics(report: Report) -> Mapping[str, float]:
    """Return a report's known totals by metric name, the same in all loggers."""
    total_j, (unit, units) = report.energy_j, functional_unit(report)
    (lo_j, hi_j), (least_j, most_j) = report.interval_j or (None, None), report.systematic_j or (None, None)
    market = report.climate_impact("usage", "market")
    metrics: dict[str, float | None] = {
        "energy/total_j": total_j,
        "energy/total_lo_j": lo_j,
        "energy/total_hi_j": hi_j,
        "energy/total_systematic_lo_j": least_j,
        "energy/total_systematic_hi_j": most_j,
        "energy/it_kwh": None if total_j is None else kwh_from_j(total_j),
        "energy/duration_s": report.duration_s,
        "carbon/gwp_location_g": report.carbon_g,
        "carbon/gwp_market_g": None if market is None else market.value,
    }
    metrics |= {f"energy/{ledger.domain}_j": ledger.energy_j for ledger in report.counted}
    if report.units:
        metrics[f"energy/j_per_{_allowed_name(unit)}"] = report.energy_per(units)
    metrics |= _mean_step_j(report)
    return {name: value for name, value in metrics.items() if value is not None}


def _mean_step_j(report: Report) -> dict[str, float | None]:
    """Return mean joules per step; with several stages, one mean per stage."""
    stages = {step.stage for step in report.steps}
    if len(stages) < 2:
        return {"energy/j_per_step": report.energy_per(report.step_count)}
    names = [str(ledger.domain) for ledger in report.counted]
    metrics: dict[str, float | None] = {}
    for stage in sorted(stages):
        steps = [s for s in report.steps if s.stage == stage and all(name in s.energy_j for name in names)]
        count = sum(step.count for step in steps)
        joules = fsum(step.energy_j[name] for step in steps for name in names)
        metrics[f"energy/j_per_{_allowed_name(stage or 'other')}_step"] = joules / count if count and names else None
    return metrics


def _allowed_name(unit: str) -> str:
    """Replace the characters that MLflow does not allow in a name by `_`."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in unit)


def provenance_tags(report: Report, manifest_sha256: str = "") -> Mapping[str, str]:
    """Return provenance, boundary and versions of a report by tag name; empty values are omitted."""
    located = (f for f in report.factors if f.kind == "grid_gwp" and f.accounting_method != "market")
    grid = next(located, None)
    tags = {
        "torchwatt.version": report.software.get("torchwatt", ""),
        "torchwatt.run_id": report.run_id,
        "torchwatt.status": report.status,
        "torchwatt.exit_reason": report.exit_reason,
        "torchwatt.provenance": report.provenance or "",
        "torchwatt.measurement_level": measurement_level((x.domain.kind, x.provenance) for x in report.counted) or "",
        "torchwatt.boundary": ";".join(sorted(str(ledger.domain) for ledger in report.counted)),
        "torchwatt.boundary_excluded": ";".join(sorted({gone.domain for gone in report.unavailable})),
        "torchwatt.region": (grid.zone or "") if grid is not None else "",
        "torchwatt.grid_source": f"{grid.source_name} {grid.data_year or ''}".strip() if grid is not None else "",
        "torchwatt.bundle_sha256": manifest_sha256,
    }
    return {name: value for name, value in tags.items() if value}


def step_series(report: Report) -> Iterator[StepValue]:
    """Yield joules, seconds and watts of each step; of a row that holds several steps, their mean at the last one.

    With several stages the names contain the stage. Where a meter did not cover the step, joules and watts are
    omitted.
    """
    staged = len({step.stage for step in report.steps}) > 1
    for step in report.steps:
        prefix = f"{STEP_SERIES}/{_allowed_name(step.stage or 'other')}_" if staged else f"{STEP_SERIES}/"
        duration_s, joules = (step.end_ns - step.start_ns) / NS_PER_S, step_j(report, step)
        values = {"s": duration_s / step.count}
        if joules is not None:
            values["j"] = joules / step.count
            if duration_s > 0:
                values["w"] = joules / duration_s
        unix_ns = step.end_ns - report.start_ns + report.start_unix_ns
        for quantity, value in values.items():
            yield StepValue(f"{prefix}{quantity}", value, step.index + step.count - 1, unix_ns)


def _log_to_tensorboard(report: Report, target: Any) -> None:
    import_optional("tensorboard", _NEEDED_BY)
    writer = target
    if target is None or isinstance(target, str):
        writer = import_optional("torch.utils.tensorboard", _NEEDED_BY).SummaryWriter(log_dir=target)
    end_s = (report.end_ns - report.start_ns + report.start_unix_ns) / NS_PER_S
    last_step = max(report.step_count - 1, 0)
    for name, value in total_metrics(report).items():
        writer.add_scalar(name, value, last_step, walltime=end_s)
    for each in step_series(report):
        writer.add_scalar(each.name, each.value, each.step, walltime=each.unix_ns / NS_PER_S)
    tags = "\n".join(f"- `{name}`: {_cell(value)}" for name, value in provenance_tags(report).items())
    writer.add_text("energy/provenance", tags, last_step, walltime=end_s)
    writer.add_text(LAYER_TABLE, layer_markdown(report), last_step, walltime=end_s)
    writer.flush()
    if writer is not target:
        writer.close()


def _log_to_wandb(report: Report, target: Any) -> None:
    wandb = import_optional("wandb", _NEEDED_BY)
    run = wandb.run if target in {None, wandb} else target
    if run is None:
        raise ConfigError("no wandb run is active: call wandb.init(mode='offline') first, or give the run")
    # A separate x axis: Weights & Biases drops values whose step is before the last one that was logged.
    run.define_metric(STEP_COUNTER)
    run.define_metric(f"{STEP_SERIES}/*", step_metric=STEP_COUNTER)
    for step, values in _rows_by_step(report):
        run.log({STEP_COUNTER: step, **values})
    columns, rows = _layer_table(report)
    run.log({LAYER_TABLE: wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})
    run.summary.update({**total_metrics(report), **provenance_tags(report)})


def _log_to_trackio(report: Report, target: Any) -> None:
    trackio = import_optional("trackio", _NEEDED_BY)
    run = import_optional("trackio.context_vars", _NEEDED_BY).current_run.get() if target in {None, trackio} else target
    if run is None:
        raise ConfigError("no trackio run is active: call trackio.init(project=...) first, or give the run")
    for step, values in _rows_by_step(report):
        run.log(values, step=step)
    columns, rows = _layer_table(report)
    table = trackio.Table(data=[dict(zip(columns, row, strict=True)) for row in rows])
    run.log(
        {**total_metrics(report), **provenance_tags(report), LAYER_TABLE: table}, step=max(report.step_count - 1, 0)
    )


def _log_to_mlflow(report: Report, target: Any) -> None:
    mlflow, entities = (import_optional(name, _NEEDED_BY) for name in ("mlflow", "mlflow.entities"))
    run_id = active_mlflow_run(mlflow) if target in {None, mlflow} else target.info.run_id
    end_ms = (report.end_ns - report.start_ns + report.start_unix_ns) // 1_000_000
    metrics = [entities.Metric(name, value, end_ms, 0) for name, value in total_metrics(report).items()]
    metrics += [entities.Metric(x.name, x.value, x.unix_ns // 1_000_000, x.step) for x in step_series(report)]
    tags = [entities.RunTag(name, value) for name, value in provenance_tags(report).items()]
    client = mlflow.MlflowClient()
    for begin in range(0, len(metrics), MLFLOW_BATCH):
        client.log_batch(run_id, metrics=metrics[begin : begin + MLFLOW_BATCH], tags=[] if begin else tags)
    columns, rows = _layer_table(report)
    by_column = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
    client.log_table(run_id, by_column, MLFLOW_FILE)


_LOGGERS: Mapping[str, Callable[[Report, Any], None]] = {
    "tensorboard": _log_to_tensorboard,
    "wandb": _log_to_wandb,
    "trackio": _log_to_trackio,
    "mlflow": _log_to_mlflow,
}


def active_mlflow_run(mlflow: Any) -> str:
    """Return the id of MLflow's active run.

    Raises:
        ConfigError: No run is active.
    """
    active = mlflow.active_run()
    if active is None:
        raise ConfigError("no MLflow run is active: log inside `with mlflow.start_run():`, or give the run")
    return str(active.info.run_id)


def _rows_by_step(report: Report) -> Iterator[tuple[int, dict[str, float]]]:
    rows: dict[int, dict[str, float]] = {}
    for each in step_series(report):
        rows.setdefault(each.step, {})[each.name] = each.value
    yield from rows.items()


def _layer_table(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of `run.layers`; unknown cells are None."""
    columns = list(LAYER_COLUMNS)
    return columns, [[_printable(row[column]) for column in columns] for row in layer_rows(report)]


def _printable(value: Any) -> Any:
    """Escape lone surrogates of a name, which protobuf and JSON readers reject."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def layer_markdown(report: Report, max_rows: int = MAX_TEXT_ROWS) -> str:
    """Return the layers as a Markdown table, full digits, most joules first; rows beyond the limit are summed."""
    rows = sorted(layer_rows(report), key=lambda row: -row["energy_self_j"])
    lines = [" | ".join(TEXT_COLUMNS), " | ".join("---" for _ in TEXT_COLUMNS)]
    lines += [" | ".join(_cell(row[column]) for column in TEXT_COLUMNS) for row in rows[:max_rows]]
    if len(rows) > max_rows:
        rest_j = fsum(row["energy_self_j"] for row in rows[max_rows:])
        lines.append(" | ".join(("", f"{len(rows) - max_rows} more rows", "", repr(rest_j), "", "", "", "")))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    """Return a cell of a Markdown table; text comes from names in the user's program."""
    if value is None:
        return ""
    text = _printable(value) if isinstance(value, str) else repr(value)
    return "".join(f"&#{ord(c)};" if c in "|`<>&*_[]\\\n\r" else c for c in text)
