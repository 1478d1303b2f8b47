"""Displays and output files of a report, of one process or of all ranks of a job."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from torchwatt.core.errors import ConfigError
from torchwatt.core.plain_text import to_printable
from torchwatt.core.report import Report
from torchwatt.core.trace import FlopCeiling
from torchwatt.reports import dataframes
from torchwatt.reports.emissions import compare_with_estimate
from torchwatt.reports.estimate_comparison import EstimateComparison
from torchwatt.reports.experiment_loggers import log_report
from torchwatt.reports.output_files import keep_run, write_csv, write_html, write_perfetto
from torchwatt.views import (
    MIME,
    VIEWS,
    SpanTimeline,
    View,
    answer,
    to_html_fragment,
    to_markdown,
    to_payload,
    to_text,
)

if TYPE_CHECKING:
    import pandas as pd

    from torchwatt.audit import SampleFormat


# With the payload and the text, a report adds less than 200 KB to a notebook, whatever ran.
MAX_HTML_BYTES = 90_000


def terminal_width() -> int:
    """Return the width of the terminal, from 60 to 140 columns; 100 without a terminal."""
    return min(max(get_terminal_size((100, 24)).columns, 60), 140)


class ReportResult(ABC):
    """Tables, files and displays of `report`.

    Energies are joules in the measured boundary; None (never 0) where nothing could be metered.
    """

    @property
    @abstractmethod
    def report(self) -> Report:
        """The immutable value behind everything else."""

    @property
    def status(self) -> str:
        """`running`, `complete`, `partial` (a meter was missing) or `aborted` (an exception ended the block)."""
        return self.report.status

    @property
    def energy_j(self) -> float | None:
        """Joules of all metered domains."""
        return self.report.energy_j

    @property
    def carbon_g(self) -> float | None:
        """Grams of CO2e; None without a region."""
        return self.report.carbon_g

    @property
    def cost(self) -> float | None:
        """Cost of the electricity in the currency of `price_per_kwh=`; None without a price."""
        return None if (cost := self.report.cost) is None else cost.value

    @property
    def duration_s(self) -> float:
        """Wall time of the block in seconds."""
        return self.report.duration_s

    @property
    def layers(self) -> pd.DataFrame:
        """One row per (domain, layer, phase), reserved rows included; self energies add up to `energy_j`."""
        return dataframes.layer_frame(self.report)

    def layers_by(self, by: View) -> pd.DataFrame:
        """One row per group of layers, reserved rows included; `energy_j` adds up to that of the run.

        Args:
            by: `hottest` (each module), `blocks` (alike modules of repeated blocks together), `tree`, `type` or
                `stage` (what the program was doing, by the names that it or a library gave).

        Raises:
            ConfigError: There is no such view.
        """
        if by not in VIEWS:
            raise ConfigError(f"no view {by!r} of the layers: give one of {', '.join(VIEWS)}")
        return dataframes.group_frame(self.report, by)

    def summary(self) -> str:
        """The answer in one or two sentences, and at most one hint."""
        return answer(self.report).text

    def to_markdown(self, *, by: View | None = None) -> str:
        """The report as Markdown: the answer, a table of the layers, and how it was measured."""
        return to_markdown(self.report, by=by)

    @property
    def samples(self) -> pd.DataFrame:
        """The power curve of each domain."""
        return dataframes.sample_frame(self.report)

    @property
    def tokens(self) -> pd.DataFrame:
        """One row per request of a language model and stage: tokens, wall time, joules."""
        return dataframes.token_frame(self.report)

    @property
    def experts(self) -> pd.DataFrame:
        """One row per expert of a mixture of experts and stage: routed tokens, joules, joules per token."""
        return dataframes.expert_frame(self.report)

    def flop_utilisation(self, ceiling: FlopCeiling, *, autocast: bool = False) -> pd.DataFrame:
        """Operations per second of each layer and phase, and their part of what the device can do.

        Rows are those of known operations on the ceiling's device, with modules whose parameters have the ceiling's
        type or that have none.

        Args:
            ceiling: From `torchwatt.measure_flop_ceiling(device, dtype)`.
            autocast: The products ran in the ceiling's type, whatever the type of the parameters is.
        """
        return dataframes.utilisation_frame(self.report, ceiling, autocast=autocast)

    @property
    def generation(self) -> pd.DataFrame:
        """Figures per token and per request, by name: of all requests, of the first call, and of the later ones."""
        return dataframes.generation_frame(self.report)

    @property
    def token_positions(self) -> pd.DataFrame:
        """Time and joules per output token, by its position in its request."""
        return dataframes.position_frame(self.report)

    def against_estimate(
        self, *, parameters: float | None = None, active_parameters: float | None = None
    ) -> EstimateComparison:
        """Joules per output token beside the estimate of EcoLogits, and which assumption explains most of the gap.

        Needs the extra `ecologits`; nothing is looked up on a network.

        Args:
            parameters: Parameters of the model; default: counted from the model that transformers' `generate` ran.
            active_parameters: Those that a token uses, of a mixture of experts; default: by its routing.

        Raises:
            ConfigError: The run has no requests, or their tokens, joules or the parameters are unknown.
            MissingPackageError: ecologits is not installed.
        """
        return compare_with_estimate(self.report, parameters, active_parameters)

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step."""
        return dataframes.step_frame(self.report)

    @property
    def epochs(self) -> pd.DataFrame:
        """One row per epoch and one for the time outside of them, of a training that an integration metered."""
        return dataframes.epoch_frame(self.report)

    @property
    def events(self) -> pd.DataFrame:
        """One row per event, such as a fault or a remark on the measurement."""
        return dataframes.event_frame(self.report)

    def to_csv(
        self,
        directory: str | os.PathLike[str],
        *,
        samples: SampleFormat = "auto",
        overwrite: bool = False,
        chain: str | os.PathLike[str] | None = None,
        sign_key: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write the audit tables into a new folder, which `torchwatt verify` can check; return that folder.

        Args:
            directory: The folder to make; if it is not empty, the tables are written to `NAME-2` beside it.
            samples: Format of the power curve, `parquet` or `csv.gz`; `auto` is Parquet if pyarrow is installed.
            overwrite: Replace an older bundle of that name; anything else is never replaced.
            chain: A file to which one line per bundle is appended, so that a removed run is detected; default:
                `TORCHWATT_CHAIN`.
            sign_key: An SSH key to sign with; default: `TORCHWATT_SIGN_KEY`.

        Raises:
            BundleError: `directory` is a file, the folder cannot be written, or the key cannot be used.
        """
        return write_csv(
            self.report, directory, samples=samples, overwrite=overwrite, chain=chain, sign_key=sign_key
        )  # fmt: skip

    def keep(self, store: str | os.PathLike[str] | None = None, *, project: str = "default") -> Path:
        """Save the run in a local store, which `torchwatt runs` and `torchwatt show` read; return its folder.

        Args:
            store: A folder; default is `TORCHWATT_STORE`, or `torchwatt/runs` in your data folder.
            project: The project under which `torchwatt runs` adds up runs by month.

        Raises:
            BundleError: The run is already in the store, or cannot be written.
            ConfigError: The project's name is invalid, or the run has not ended.
        """
        if self.report.status == "running":
            raise ConfigError("the run has not ended: save it after its block")
        return keep_run(self.report, store, project)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML page, replacing an older one.

        Raises:
            BundleError: `path` exists and is not a file, or cannot be written.
        """
        return write_html(self.report, path)

    def to_perfetto(self, path: str | os.PathLike[str]) -> Path:
        """Write the run as a trace for Perfetto (ui.perfetto.dev) and `chrome://tracing`, replacing an older file.

        Watts of each domain are counters; steps, stages, epochs and modules are slices, those of steps that were not
        traced are marked as filled in. Times are microseconds since the run's start.

        Args:
            path: The file, such as `run.json.gz`; compressed if its name ends in `.gz`.

        Raises:
            BundleError: `path` exists and is not a file, or cannot be written.
        """
        return write_perfetto(self.report, path, self._timeline())

    def log_to(self, target: Any) -> None:
        """Log totals, joules by step and the layers to TensorBoard, Weights & Biases, trackio or MLflow.

        Args:
            target: The library's own object (`SummaryWriter`, a run of wandb, trackio or MLflow), or a name: `wandb`,
                `trackio` and `mlflow` are their active runs, `tensorboard:DIR` is a new `SummaryWriter(DIR)`.

        Raises:
            ConfigError: The run has not ended, `target` is none of these, or no run is active.
            MissingPackageError: The library is not installed.
        """
        log_report(self.report, target)

    def _timeline(self) -> SpanTimeline | None:
        """Return the spans of the run's modules; None where they are not kept."""
        return None

    def __repr__(self) -> str:
        # Printing a run must not raise an encoding error.
        return to_printable(to_text(self.report, width=terminal_width()))

    def _repr_html_(self) -> str:
        return to_html_fragment(self.report, max_bytes=MAX_HTML_BYTES)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        report = self.report
        bundle: dict[str, Any] = {
            "text/plain": to_printable(to_text(report)),
            "text/html": self._repr_html_(),
            MIME: to_payload(report),
        }
        return {k: v for k, v in bundle.items() if (not include or k in include) and k not in (exclude or ())}


class JobRun(ReportResult):
    """All ranks of a job, each joule counted once; shown, read and written like a `Run`."""

    def __init__(self, report: Report) -> None:
        self._report = report

    @property
    def report(self) -> Report:
        """The immutable value behind everything else."""
        return self._report

    @property
    def run_id(self) -> str:
        """Identifier of the job, the same whenever the same parts are merged."""
        return self._report.run_id

    @property
    def name(self) -> str:
        """The name shown in reports."""
        return self._report.name

    @property
    def units(self) -> Mapping[str, float]:
        """Units counted with `count`, summed over all ranks."""
        return dict(self._report.units)

    @property
    def ranks(self) -> pd.DataFrame:
        """One row per rank, also for ranks without data: joules, communication, CPU time, times, status."""
        return dataframes.rank_frame(self._report)
