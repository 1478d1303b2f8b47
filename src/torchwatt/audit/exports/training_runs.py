"""All runs of a training, each joule counted once, and the form of the EU AI Act about them.

The form (Code of Practice, Model Documentation Form; Annex XI, section 1, 2(d)-(e)) asks for the energy of a training
in MWh with at least two significant figures, measured or estimated, its computation in FLOP, wall-clock days and
hardware-days. It names no boundary, so the form states that of the meters.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from math import fsum
from pathlib import Path

from torchwatt.audit.bundle import SYSTEMATIC, Bundle, counted_devices, number, pue_of, read_bundle, text, timestamp
from torchwatt.audit.bundle_limits import is_plain_file
from torchwatt.audit.counted_run import ADDED, NOTHING, RunShare
from torchwatt.audit.deduplication import count_bundles
from torchwatt.audit.exports.markdown_reports import (
    format_figure,
    format_interval,
)
from torchwatt.audit.seal import MANIFEST
from torchwatt.core.errors import BundleError
from torchwatt.core.plain_text import escape_markdown, markdown_table

J_PER_MWH, S_PER_DAY = 3.6e9, 86_400.0
NOT_KNOWN = "N/A"  # the form's own word
MEASURED = frozenset({"measured", "derived", "apportioned"})
_NAMES_OF_TRAINING = ("parent_run_id", "name")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A folder whose run is not in the sums. `ours` is False only if its tables name another training."""

    directory: Path
    reason: str
    ours: bool = True


@dataclass(frozen=True, slots=True)
class TrainingRuns:
    """Runs of a training, and the bundles that are not in the sums; without a name, the runs of a command."""

    bundles: tuple[Bundle, ...]
    name: str = ""
    left_out: tuple[LeftOut, ...] = ()
    flops: float | None = None  # as declared for the training as a whole


def find_training(places: Sequence[str | os.PathLike[str]], name: str) -> TrainingRuns:
    """Find the runs of a training below some folders, whatever their status, and check each bundle by `verify`.

    A run belongs to it if its column `parent_run_id` or `name`, or the folder of its project, is `name`, or if its
    `parent_run_id` is the id of a run that belongs. Bundles that fail `verify` or whose run had not ended are left out
    and listed, also those of other trainings: the name in such a bundle may be what was changed.

    Raises:
        BundleError: No run belongs to it.
        ConfigError: A place is no folder.
    """
    from torchwatt.audit.fleet.ingestion import bundles_below  # imports this package

    left_out: list[LeftOut] = []
    sound: list[Bundle] = []
    visited: set[Path] = set()
    for reference in chain.from_iterable(bundles_below(Path(place)) for place in places):
        folder = Path(reference.directory)
        if folder.resolve() in visited:
            continue
        visited.add(folder.resolve())
        result = _check_bundle(folder, Path(reference.root), name)
        if isinstance(result, Bundle):
            sound.append(result)
        elif result is not None:
            left_out.append(result)
    bundles = _select_runs(sound, name)
    if not bundles:
        failed = f"; {len(left_out)} folders have no sound bundle: {left_out[0].reason}" if left_out else ""
        raise BundleError(
            f"no run of training {name!r} in {', '.join(map(str, places))}: "
            f"no parent_run_id, name or project is {name!r}{failed}"
        )
    return TrainingRuns(bundles, name, tuple(left_out))


def _check_bundle(folder: Path, root: Path, name: str) -> Bundle | LeftOut | None:
    """Return the bundle, why it is left out, or None for a folder without a file of a bundle."""
    from torchwatt.audit.fleet.bundle_ingestion import looks_like_bundle
    from torchwatt.audit.verification import verify

    if not is_plain_file(folder / MANIFEST) and not looks_like_bundle(folder):
        return None
    try:
        bundle = read_bundle(folder, root)
    except BundleError as error:
        return LeftOut(folder, str(error))
    ours = bool(_select_runs([bundle], name))
    if bundle.run["status"] == "running":
        return LeftOut(folder, f"run {bundle.run['run_id']} had not ended", ours)
    try:
        verification = verify(folder)
    except BundleError as error:
        return LeftOut(folder, str(error), ours)
    if verification.ok:
        return bundle
    more = f" and {verification.count - 1} more findings" if verification.count > 1 else ""
    return LeftOut(folder, f"fails verify: {verification.findings[0]}{more}", ours)


def _select_runs(bundles: Sequence[Bundle], name: str) -> tuple[Bundle, ...]:
    """Return the runs that belong to a training, in order of time."""
    chosen = {id(b): b for b in bundles if name in {_project_of(b), *(text(b.run, n) for n in _NAMES_OF_TRAINING)}}
    while True:
        ids = {text(bundle.run, "run_id") for bundle in chosen.values()}
        more = {id(b): b for b in bundles if id(b) not in chosen and text(b.run, "parent_run_id") in ids}
        if not more:
            break
        chosen |= more
    return tuple(sorted(chosen.values(), key=lambda b: (timestamp(b.run, "started_at"), text(b.run, "run_id"))))


def _project_of(bundle: Bundle) -> str:
    return bundle.directory.absolute().parent.name


def ai_act_markdown(bundles: Sequence[Bundle]) -> bytes:
    """Return the form about one run, which says that it is not about a training."""
    return training_markdown(TrainingRuns(tuple(bundles)))


def training_markdown(training: TrainingRuns) -> bytes:
    """Return the form about all runs of a training."""
    return ("\n".join(_form_lines(training, TrainingTotals(training))) + "\n").encode()


class TrainingTotals:
    """Sums of a training. Copies, and ranks beside their merged job, add nothing; None is unknown."""

    def __init__(self, training: TrainingRuns) -> None:
        self.training = training
        self.counted: tuple[tuple[Bundle, RunShare], ...] = count_bundles(training.bundles)
        self.runs = [(bundle, share) for bundle, share in self.counted if share.state not in NOTHING]
        self.added = [(bundle, share) for bundle, share in self.runs if share.state in ADDED]
        metered = [(bundle, joules) for bundle, share in self.added if (joules := _once_j(bundle, share)) is not None]
        self.known_j = fsum(joules for _, joules in metered)
        self.known_runs = len(metered)
        self.kinds = sorted({_kinds(bundle) for bundle, _ in metered})

    def why_unknown(self) -> Iterator[str]:
        """Yield why the energy of the whole training is unknown; nothing if it is known."""
        if missing := [item for item in self.training.left_out if item.ours]:
            yield f"{len(missing)} bundles are left out (below), also of days and FLOP"
        if self.known_runs < len(self.added):
            yield f"nothing was metered in {len(self.added) - self.known_runs} of {len(self.added)} runs"
        if len(self.added) < len(self.runs):
            names = ", ".join(text(b.run, "run_id") for b, share in self.runs if share.state not in ADDED)
            yield f"these runs may share devices with others, which are not identified: {names}"
        missing_ranks = sum(row["status"] == "missing" for bundle, _ in self.runs for row in bundle["rank"])
        if missing_ranks:
            yield f"{missing_ranks} processes of merged jobs left nothing to count"
        if len(self.kinds) > 1:
            yield f"the runs have different boundaries: {'; '.join(self.kinds)}"

    @property
    def energy_j(self) -> float | None:
        """Return the energy of all runs."""
        return None if not self.known_runs or any(self.why_unknown()) else self.known_j

    @property
    def measured_share(self) -> float | None:
        """Return the measured part of the energy; the rest is modelled."""
        parts = [
            (
                (number(row, "energy_j") or 0.0) * share.shares.get(text(row, "device_id"), share.share),
                row["provenance"],
            )
            for bundle, share in self.added
            for row in counted_devices(bundle)
        ]
        total_j = fsum(joules for joules, _ in parts)
        return fsum(joules for joules, provenance in parts if provenance in MEASURED) / total_j if total_j > 0 else None

    def bound_j(self, column: str) -> float | None:
        """Return a bound of what other meters would measure; errors of meters are the same in all runs and add up."""
        bounds = [(number(bundle.run, column), share.share) for bundle, share in self.added]
        if self.energy_j is None or any(bound is None for bound, _ in bounds):
            return None
        return fsum((bound or 0.0) * share for bound, share in bounds)

    @property
    def flops(self) -> float | None:
        """Return the operations of all runs: as declared for the training, else the sum of all of its runs."""
        if self.training.flops is not None:
            return self.training.flops
        counts = [number(bundle.run, "flops_total") for bundle, _ in self.runs]
        if None in counts or any(item.ours for item in self.training.left_out):
            return None
        return fsum(count for count in counts if count is not None)

    def common(self, name: str) -> str:
        """Return the value of a column of `run`, or the different ones of the runs."""
        return "; ".join(sorted({text(bundle.run, name) for bundle, _ in self.runs} - {""}))

    @property
    def wall_days(self) -> float:
        """Return the time in which at least one run was under way, in days."""
        return _union_s(_interval(bundle) for bundle, _ in self.runs) / S_PER_DAY

    def hardware_days(self) -> dict[str, float]:
        """Return the days of each model of accelerator, else of CPU; a device that runs share counts once a moment."""
        for kind in ("gpu", "cpu"):
            times: dict[tuple[str, str], list[tuple[datetime, datetime]]] = defaultdict(list)
            for bundle, _ in self.runs:
                for row in counted_devices(bundle, kind):
                    key = text(row, "device_key") or f"{bundle.run['run_id']} {row['device_id']}"
                    times[text(row, "model") or kind.upper(), key].append(_interval(bundle))
            days: dict[str, float] = defaultdict(float)
            for (model, _), intervals in sorted(times.items()):
                days[model] += _union_s(intervals) / S_PER_DAY
            if days:
                return dict(days)
        return {}


def _once_j(bundle: Bundle, share: RunShare) -> float | None:
    return number(bundle.run, "energy_it_j") if share.state == "yes" else share.energy_j


def _kinds(bundle: Bundle) -> str:
    return ", ".join(sorted({text(row, "kind") for row in counted_devices(bundle)}))


def _interval(bundle: Bundle) -> tuple[datetime, datetime]:
    start = timestamp(bundle.run, "started_at")
    return start, start + timedelta(seconds=number(bundle.run, "duration_s") or 0.0)


def _union_s(intervals: Iterable[tuple[datetime, datetime]]) -> float:
    """Return the length of the union of intervals in seconds."""
    length_s, end = 0.0, None
    for lo, hi in sorted(intervals):
        begin = lo if end is None else max(lo, end)
        if hi > begin:
            length_s += (hi - begin).total_seconds()
            end = hi
    return length_s


def _figure(value: float | None) -> str:
    """Return at least three significant figures, the form's own word where the value is unknown."""
    return NOT_KNOWN if value is None else format_figure(value, padded=True)


def _form_lines(training: TrainingRuns, totals: TrainingTotals) -> Iterator[str]:
    subject = f"training {escape_markdown(training.name)}" if training.name else "one run"
    yield f"## Energy consumption of {subject} (EU AI Act, Annex XI, section 1, 2(d)-(e))"
    yield ""
    yield from markdown_table(("Item", "Value"), _form_rows(totals))
    yield ""
    yield f"**Method.** {_method_text(totals)}"
    yield ""
    missing = list(_missing_information(totals))
    yield f"**Missing information.** {'; '.join(missing) if missing else 'none'}."
    yield ""
    if training.name:
        yield from _run_lines(totals)
        yield ""
    else:
        yield (
            "One run only: the form asks for the whole training, earlier and failed runs included "
            "(`torchwatt export runs/ --to ai-act --training NAME`)."
        )
    yield "Inference is asked for as FLOP of a named benchmark, not as energy."


def _form_rows(totals: TrainingTotals) -> Iterator[tuple[str, str]]:
    energy_j, bounds = totals.energy_j, [totals.bound_j(column) for column in SYSTEMATIC]
    yield "Energy (MWh)", _figure(None if energy_j is None else energy_j / J_PER_MWH)
    if energy_j is None and totals.known_runs:
        label = f"Energy of the {totals.known_runs} runs that are known (MWh), not a total"
        yield label, _figure(totals.known_j / J_PER_MWH)
    lo, hi = (None if bound is None else bound / J_PER_MWH for bound in bounds)
    yield "What other meters would say (MWh, 90 %)", format_interval(lo, hi)
    share = totals.measured_share
    word = "measured" if share is not None and share > 1 - 1e-9 else "estimated"
    part = (
        "" if share is None or word == "measured" else f" ({share:.1%} of the joules are measured, the rest modelled)"
    )
    yield "Measured or estimated", NOT_KNOWN if share is None else word + part
    yield "Boundary (the form names none)", _boundary_text(totals)
    yield "Computation (FLOP)", NOT_KNOWN if totals.flops is None else f"{totals.flops:.3g}"
    flops_provenance = "declared" if totals.training.flops is not None else totals.common("flops_provenance")
    yield "How the computation is known", escape_markdown(flops_provenance)
    starts, ends = zip(*(_interval(bundle) for bundle, _ in totals.runs), strict=True)
    yield "Wall-clock days with a run under way", _figure(totals.wall_days)
    yield "Period (UTC)", f"{min(starts):%Y-%m-%d %H:%M:%S} to {max(ends):%Y-%m-%d %H:%M:%S}"
    days = totals.hardware_days()
    shown = "; ".join(f"{_figure(value)} {escape_markdown(model)}-days" for model, value in days.items())
    yield "Hardware-days", shown or NOT_KNOWN
    statuses = [text(bundle.run, "status") for bundle, _ in totals.runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
    yield "Runs", f"{len(totals.runs)}: {counts}"
    yield "Stage", escape_markdown(totals.common("lifecycle_stage"))
    yield "Model", escape_markdown(totals.common("model_id"))


def _excluded(totals: TrainingTotals) -> str:
    names = {n for bundle, _ in totals.runs for n in text(bundle.run, "boundary_excluded").split(";")} - {""}
    return ", ".join(sorted(names)) or "nothing that was found"


def _boundary_text(totals: TrainingTotals) -> str:
    kinds = " or ".join(totals.kinds) or "nothing"
    left_out = f"left out: {_excluded(totals)}; network, storage, cooling, idle machines between the runs"
    return escape_markdown(f"inside: {kinds}; {left_out}")


def _method_text(totals: TrainingTotals) -> str:
    if not totals.known_runs:
        return "Nothing could be metered."
    devices = {
        f"{text(row, 'kind')} by {text(row, 'sensor').replace(';', ' and ')} ({text(row, 'provenance')})"
        for bundle, _ in totals.added
        for row in counted_devices(bundle)
    }
    ratios = [number(bundle.run, "coverage_ratio") for bundle, _ in totals.added]
    coverage = min((value for value in ratios if value is not None), default=None)
    least = "" if coverage is None else f" Meters covered {coverage:.1%} of each run or more."
    versions = ", ".join(sorted({text(bundle.run, "tool_version") for bundle, _ in totals.runs}))
    pues = {pue for bundle, _ in totals.runs if (pue := pue_of(bundle)) is not None}
    building = (
        f"A PUE of {', '.join(f'{pue:g}' for pue in sorted(pues))} is not applied." if pues else "No PUE is applied."
    )
    checks = (
        "All runs that belong to the training are added, also partial and aborted ones; energy that several runs "
        "metered on one device, copies of a run, and processes beside the merged job they are a part of are counted "
        "once. Each bundle was checked by `torchwatt verify`, which computes the sums again."
        if totals.training.name
        else f"The joules of each layer are in the audit bundle of run {text(totals.runs[0][0].run, 'run_id')}; "
        "`torchwatt verify` computes the sums again."
    )
    return (
        f"torchwatt {escape_markdown(versions)} read the meters of the machines while the runs were under way: "
        f"{escape_markdown(', '.join(sorted(devices)))}.{least} {building} What is neither measured nor modelled, by "
        f"the boundary above, is in no figure. {checks} The raw counter readings are in the bundles."
    )


def _missing_information(totals: TrainingTotals) -> Iterator[str]:
    if not totals.known_runs:
        yield "energy: nothing was metered"
    else:
        yield from (f"energy: {reason}" for reason in totals.why_unknown())
    if totals.flops is None:
        yield "the computation in FLOP is not known of all runs"
    for name in ("lifecycle_stage", "model_id", "organisation"):
        if not totals.common(name):
            yield f"{name} was not declared"
    if not totals.training.name:
        yield from (f"the run is {b.run['status']}" for b, _ in totals.runs if b.run["status"] != "complete")


def _run_lines(totals: TrainingTotals) -> Iterator[str]:
    yield "### Runs"
    yield ""
    rows = (
        (
            escape_markdown(text(bundle.run, "run_id")),
            f"{timestamp(bundle.run, 'started_at'):%Y-%m-%d %H:%M:%S}",
            text(bundle.run, "status"),
            _figure(None if (joules := _once_j(bundle, share)) is None else joules / J_PER_MWH),
            share.state,
        )
        for bundle, share in totals.counted
    )
    yield from markdown_table(("Run", "Start (UTC)", "Status", "MWh counted", "Counted"), rows)
    if not totals.training.left_out:
        return
    yield ""
    yield "### Left out"
    yield ""
    left_out = (
        (escape_markdown(item.directory.name), escape_markdown(item.reason), "yes" if item.ours else "no, by its name")
        for item in totals.training.left_out
    )
    yield from markdown_table(("Folder", "Why", "Of this training"), left_out)
