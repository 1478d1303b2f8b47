"""Runs programs under torchwatt and sets the report beside the program's own truth.

Shares are parts of the joules of the CPU, and of the seconds of the program's clock. The CPU's joules are modelled even
where they are metered: then they follow the time of the process, and the clock knows the right shares. `(profiler)`
is in neither. What is no forward, backward, optimizer, data, communication or compile is `other` in both: `(outside)`,
`(idle)`, `(setup)` and the `other` part of `(unattributed)` with it. Joules of `(unattributed)` whose phase is known
count in that phase. Where something is compiled, the shares of the other phases are those of what is not `compile`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from torch import nn

import torchwatt as tw
from tests.programs.plain import prepare
from tests.programs.truth import PHASES, PROGRAMS, Parts

NO_METERS = Path(__file__).parent / "no powercap here"
ROOT, PROFILER = "(root)", "(profiler)"
REPEATS = 3
SHORT_MS = 1.0  # steps below have a wider bound
BOUND, SHORT_BOUND = 6.0, 8.0  # points of the run between truth and report
ALL_STAGES = "all"


@dataclass(frozen=True)
class Pair:
    """One figure twice: what the program counted, and what the report says; None is unknown."""

    truth: float
    reported: float | None


@dataclass(frozen=True)
class Result:
    """One run of a program. Shares in percent of all seconds or joules; parts of groups are named `group/phase`."""

    program: str
    seconds: float
    step_ms: float
    phases: dict[str, Pair]
    groups: dict[str, Pair]
    steps: dict[str, Pair]
    calls: dict[str, Pair]  # `module/phase`
    strange_names: list[str]  # in the report, and neither a module's nor a compiled function's
    missing_names: list[str]  # modules with parameters that ran in most steps, and are not in the report
    unequal_parents: list[str]
    profiler: float  # percent of the run's joules
    events: list[str]


def bound(result: Result, *, usual: float = BOUND, short: float = SHORT_BOUND) -> float:
    return short if result.step_ms < SHORT_MS else usual


def is_within(result: Result) -> bool:
    """Return whether every share of a run is."""
    pairs = (*result.phases.values(), *result.groups.values())
    return all(abs(pair.reported - pair.truth) <= bound(result) for pair in pairs)


def measure(name: str, length: float = 1.0) -> Result:
    """Run one program in a session of its own."""
    parts, models, run_program = prepare(name, length)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tw.profile(models if isinstance(models, nn.Module) else None, powercap_root=NO_METERS) as run,
    ):
        parts.restart()
        run_program()
        parts.start("other")
    return compare(name, parts, models, run)


def compare(name: str, parts: Parts, models: nn.Module | dict[str, nn.Module], run: tw.Run) -> Result:
    everything = run.layers
    of_cpu = everything[everything.domain.str.partition(":")[0] == "cpu"]
    rows = of_cpu[of_cpu.fqn != PROFILER]
    steps = sum(parts.steps.values())
    modules = module_names(models)
    named = {fqn for fqn in everything.fqn if not fqn.startswith("(")}
    return Result(
        program=name,
        seconds=parts.total_s,
        step_ms=parts.total_s / max(steps, 1) * 1e3,
        phases=phases(parts, rows, PROGRAMS[name].shares),
        groups=dict(groups(parts, rows)),
        steps=dict(stages(parts, run.steps)),
        calls=dict(calls(parts, rows, PROGRAMS[name].counts)),
        strange_names=sorted(named - set(modules) - parts.functions),
        missing_names=missing(parts, rows, modules),
        unequal_parents=[*unequal_totals(everything, set(modules)), *unequal_views(run)],
        profiler=100 * (1 - rows.energy_self_j.sum() / of_cpu.energy_self_j.sum()),
        events=list(run.events.code),
    )


def phases(parts: Parts, rows: pd.DataFrame, told_apart: tuple[str, ...]) -> dict[str, Pair]:
    joules = {**dict.fromkeys(PHASES, 0.0), **rows.groupby(phase_of(rows)).energy_self_j.sum()}
    found = {}
    for phase in told_apart:
        if parts.seconds[phase] > 0 or joules[phase] > 0:
            of = [each for each in PHASES if each != "compile" or phase == "compile"]
            total_s, total_j = sum(parts.seconds[each] for each in of), sum(joules[each] for each in of)
            found[phase] = Pair(100 * parts.seconds[phase] / total_s, 100 * joules[phase] / total_j)
    return found


def phase_of(rows: pd.DataFrame) -> pd.Series[str]:
    return rows.phase.where(rows.phase.isin(PHASES), "other")


def groups(parts: Parts, rows: pd.DataFrame) -> Iterable[tuple[str, Pair]]:
    total_s = parts.total_s - parts.seconds["compile"]
    total_j = rows[rows.phase != "compile"].energy_self_j.sum()
    for group, by_phase in parts.group_seconds.items():
        inside = rows.fqn.map(lambda fqn, tops=parts.groups[group]: any(is_in(fqn, top) for top in tops))
        for phase, seconds in by_phase.items():
            joules = rows[inside & (rows.phase == phase)].energy_self_j.sum()
            yield f"{group}/{phase}", Pair(100 * seconds / total_s, 100 * joules / total_j)


def is_in(fqn: str, top: str) -> bool:
    return fqn == top or fqn.startswith(f"{top}.")


def stages(parts: Parts, steps: pd.DataFrame) -> Iterable[tuple[str, Pair]]:
    """Yield steps of all stages, and of each; unknown where the report does not tell stages apart."""
    yield ALL_STAGES, Pair(sum(parts.steps.values()), int(steps.steps.sum()))
    told = steps.groupby("stage").steps.sum() if "stage" in steps else None
    for stage in sorted({*parts.steps, *(told.index if told is not None else ())}):
        yield stage, Pair(parts.steps[stage], None if told is None else int(told.get(stage, 0)))


def calls(parts: Parts, rows: pd.DataFrame, phases: tuple[str, ...]) -> Iterable[tuple[str, Pair]]:
    """Yield calls of every module of the report that the program counted."""
    for phase in phases:
        counted = parts.calls if phase == "forward" else parts.graded_calls
        of_phase = (rows.phase == phase) & (rows.provenance != "derived")  # the others only contain modules
        for fqn, told in rows[of_phase & rows.fqn.isin(parts.calls)].groupby("fqn").calls:
            yield f"{fqn}/{phase}", Pair(counted[fqn], None if told.isna().any() else int(told.sum()))


def module_names(models: nn.Module | dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return every module by the names it has: as in `state_dict`, below the name of its model if there are several."""
    tops = {"": models} if isinstance(models, nn.Module) else models
    found = {}
    for top, model in tops.items():
        for name, module in model.named_modules(remove_duplicate=False):
            found[".".join(part for part in (top, name) if part) or ROOT] = module
    return found


def missing(parts: Parts, rows: pd.DataFrame, modules: dict[str, nn.Module]) -> list[str]:
    """Return modules with parameters of their own that the program called often, and that the report does not know.

    One that runs in few steps may have left its joules to the module around it.
    """
    seen = {id(modules[fqn]) for fqn in rows.fqn if fqn in modules}
    often = max(1, sum(parts.steps.values()) / 2)
    return [
        fqn
        for fqn, module in modules.items()
        if parts.calls[fqn] >= often and list(module.parameters(recurse=False)) and id(module) not in seen
    ]


def unequal_totals(rows: pd.DataFrame, modules: set[str]) -> Iterable[str]:
    """Yield the rows of `run.layers` whose total is not the sum of what is inside."""
    inside: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for row in rows.itertuples():
        for top in {row.fqn, *outer_names(row.fqn), *([ROOT] if row.fqn in modules else [])}:
            inside[row.domain, top, row.phase, row.stage].append(row.energy_self_j)
    for row in rows.itertuples():
        if not is_close(math.fsum(inside[row.domain, row.fqn, row.phase, row.stage]), row.energy_total_j):
            yield f"run.layers: {row.domain} {row.fqn} {row.phase} {row.stage}"


def outer_names(fqn: str) -> list[str]:
    parts = fqn.split(".")
    return [] if fqn.startswith("(") else [".".join(parts[:n]) for n in range(1, len(parts))]


def is_close(a: float, b: float, rel_tol: float = 1e-9) -> bool:
    return math.isclose(a, b, rel_tol=rel_tol, abs_tol=1e-12)


def unequal_views(run: tw.Run) -> Iterable[str]:
    """Yield what does not add up in the other views: the notebook's tree, the terminal, the files."""
    views = run._repr_mimebundle_()
    yield from unequal_payload(next(value for mime, value in views.items() if mime.startswith("application/")))
    *shares, everything = shares_of_text(str(run))
    if abs(sum(shares) - everything) > 0.06 * len(shares):  # each is rounded to 0.1
        yield "text: the lines and all of the above"
    with TemporaryDirectory() as folder:
        run.to_csv(Path(folder) / "audit")
        layer, device = (pd.read_csv(Path(folder) / "audit" / f"{table}.csv") for table in ("layer", "device"))
    in_rows = layer.groupby("device_id").energy_self_j.agg(math.fsum)
    for each in device.itertuples():
        if each.device_id in in_rows and not is_close(in_rows[each.device_id], each.energy_j):
            yield f"layer.csv and device.csv: {each.device_id}"


def shares_of_text(text: str) -> list[float]:
    """Return the column `share` of the table in a terminal, in percent."""
    lines = text[text.index("\nlayers, ") :].split("\n\n", maxsplit=1)[0].splitlines()
    header = next((line for line in lines if " share " in line), None)
    if header is None:
        raise ValueError(f"no column of shares in this report:\n{text}")
    end = header.index(" share ") + len(" share")
    cells = [line[:end].split() for line in lines if line[:end].endswith(" %")]
    return [float(cell[-2]) for cell in cells]


def unequal_payload(payload: dict[str, Any]) -> Iterable[str]:
    rows = payload["layers"]
    for index, row in enumerate(rows):
        parts = [row["self_j"], *(child["total_j"] for child in rows if child["parent"] == index)]
        for phase, total_j in row["total_j"].items():
            if not is_close(sum(part.get(phase, 0.0) for part in parts), total_j, rel_tol=1e-4):
                yield f"notebook: {row['fqn']} {phase}"
    booked_j = sum(sum(row["self_j"].values()) for row in (*rows, *payload["reserved"]))
    booked_j += payload["folded"]["energy_j"] if payload["folded"] else 0.0
    if not is_close(booked_j, payload["energy"]["value_j"], rel_tol=1e-4):
        yield "notebook: all rows and the total"


def in_the_middle(results: Iterable[Result]) -> Result:
    """Return the last of several runs of one program with the median of each share's difference in place of its own."""
    results = list(results)
    last = results[-1]

    def middle(of: str) -> dict[str, Pair]:
        names = dict.fromkeys(name for result in results for name in getattr(result, of))
        pairs = {name: [getattr(result, of).get(name, Pair(0.0, 0.0)) for result in results] for name in names}
        return {
            name: Pair(truth := median(p.truth for p in each), truth + median(p.reported - p.truth for p in each))
            for name, each in pairs.items()
        }

    step_ms = median(result.step_ms for result in results)
    return replace(last, step_ms=step_ms, phases=middle("phases"), groups=middle("groups"))


def loaded(values: dict[str, Any]) -> Result:
    pairs = {
        of: {name: Pair(**pair) for name, pair in values[of].items()} for of in ("phases", "groups", "steps", "calls")
    }
    return Result(**{**values, **pairs})


def write_results(file: Path, names: Iterable[str], length: float = 1.0, repeats: int = REPEATS) -> None:
    """Run programs until most of so many runs of each are within the bound; write each as a line of JSON."""
    with file.open("w") as lines:
        for name in names:
            within = 0
            for _ in range(repeats):
                result = measure(name, length)
                print(json.dumps(asdict(result)), file=lines, flush=True)
                within += is_within(result)
                if within > repeats // 2:  # so is their median, whatever the last would be
                    break
