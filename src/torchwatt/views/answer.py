"""The answer of a report in one or two sentences, and at most one hint; the same text in every view."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np

from torchwatt.core.ledger import Entry, Ledger, common_work, energy_per_tflop_j, total_self_j
from torchwatt.core.report import Report
from torchwatt.core.terms import (
    COMMUNICATION,
    COMPILE,
    DATA,
    DECODE,
    IDLE,
    OPTIMIZER,
    OTHER_PROCESSES,
    OUTSIDE,
    PROFILER,
    REQUEST_STAGES,
    RESERVED,
    ROOT,
    TRANSFER,
    UNATTRIBUTED,
)
from torchwatt.core.trace import ModuleKind
from torchwatt.views import report_summary
from torchwatt.views.energy_rates import generation_sentence, stage_energy_j, step_rates, unit_rates
from torchwatt.views.layer_groups import fold_names
from torchwatt.views.layer_sums import LayerSum, entries_by_stage, module_kinds, sum_layers
from torchwatt.views.module_tree import GroupTree
from torchwatt.views.number_format import format_energy, format_time

# Of the joules: as many groups are named as make this share, but no more than the most.
_MAIN_SHARE, _MAX_GROUPS = 0.8, 5

# PyTorch's TensorBoard plugin advises on data loading above 5 % of the step time, on communication above 10 % (kineto,
# tb_plugin/torch_tb_profiler/profiler/run_generator.py: `dataloader_ratio > 0.05`, `communication_ratio > 0.1`).
DATA_TIME_SHARE = 0.05
COMMUNICATION_TIME_SHARE = 0.1
# Repeats of a run differed by 7 to 18 % (docs/attribution.md): less may be such a difference.
COMPILE_TIME_SHARE = 0.18
IDLE_ENERGY_SHARE = 0.18
# The roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009): below the ridge, time goes by the bytes that are
# read, so an operation costs as much more as it needs more bytes. Twice is far beyond the 18 % of repeats.
WORK_RATIO = 2.0
WORK_ENERGY_SHARE = 0.18

_ROW_NAMES = {
    OPTIMIZER: "the optimizer",
    UNATTRIBUTED: "work outside of modules",
    OUTSIDE: "before the first and after the last module",
    TRANSFER: "transfers",
    COMMUNICATION: "communication",
    COMPILE: "compiling",
    PROFILER: "torchwatt itself",
    OTHER_PROCESSES: "other processes",
    IDLE: "idle",
    DATA: "waiting for data",
    ROOT: "the model outside of its modules",
}

_NUMBERS_ONLY = re.compile(r"[*\d{},.-]+( itself)?")  # names of a model that is one sequence, such as `{0-4}.2`
_ALL_NUMBERED = "*"
# Such as `decoder.layers.{0,2}.1.to_q`: modules 1 in some modules of a list, and what is in them.
_SOME_OF_A_LIST = re.compile(r"(?P<some>(?P<list>[^{}]+)\.\{[\d,-]+\}(?:\.\d+)*)(?:\.(?P<inner>[^{} ]+))?")


@dataclass(frozen=True, slots=True)
class Answer:
    """One or two sentences, and a hint with its evidence; "" without one."""

    sentences: tuple[str, ...]
    hint: str

    @property
    def text(self) -> str:
        """Return sentences and hint as one line."""
        return " ".join(part for part in (*self.sentences, self.hint) if part)


def answer(report: Report) -> Answer:
    """Return the total, where most of it went and what was idle or waiting, and the hint with the most joules."""
    if report.energy_j is None:
        return Answer((f"Nothing was metered in {format_time(report.duration_s)}.",), "")
    sentences = (
        _total_sentence(report), generation_sentence(report), _stage_sentence(report), _group_sentence(report),
    )  # fmt: skip
    hints = [hint for make_hint in HINTS if (hint := make_hint(report)) is not None]
    best = max(hints, key=lambda hint: hint.energy_j, default=None)
    return Answer(tuple(filter(None, sentences)), best.text if best else "")


def _total_sentence(report: Report) -> str:
    energy = " ".join((format_energy(report.energy_j), f"({_band_text(report)})"))
    energy = ", ".join(filter(None, (energy, report_summary.coverage_text(report))))
    parts = [f"{energy} in {format_time(report.duration_s)}"]
    rates = (*step_rates(report), *unit_rates(report))
    steps = [rate for rate in rates if rate.label.endswith(" step")][:1]
    units = [rate for rate in rates if rate.label.removeprefix("per ") in report.units][:1]
    parts += [f"{rate.value} {rate.label}" for rate in (*steps, *units)]
    return f"{', '.join(parts)}; {_provenance_text(report)}."


def _band_text(report: Report) -> str:
    """Return the interval between repeats; without one (a run of few steps), what other meters would measure."""
    repeats = report_summary.bounds_text(report.energy_j, report.interval_j)
    if repeats:
        return f"{report_summary.REPEAT_LABEL}: {repeats}"
    return report_summary.systematic_text(report) or "no interval known"


def _provenance_text(report: Report) -> str:
    """Return which part of the total is known how: `97 % measured, 3 % modelled`."""
    by_provenance: dict[str, list[float]] = defaultdict(list)
    for ledger in report.counted:
        by_provenance[ledger.provenance].append(ledger.energy_j)
    if len(by_provenance) == 1:
        return f"all of it {next(iter(by_provenance))}"
    total_j = report.energy_j or 0.0
    shares = sorted(((fsum(joules), name) for name, joules in by_provenance.items()), reverse=True)
    return ", ".join(f"{_share(joules, total_j)} {name}" for joules, name in shares)


def _group_sentence(report: Report) -> str:
    """Return the groups that make most of the joules, and what was idle or waiting; "" without layers."""
    layers, run_j = sum_layers(report), report.energy_j or 0.0
    if run_j <= 0 or all(layer.reserved for layer in layers):
        return ""
    groups = sorted(main_groups(report, layers).items(), key=lambda item: (-item[1], item[0]))
    named: list[tuple[str, float]] = []
    while groups and len(named) < _MAX_GROUPS and fsum(joules for _, joules in named) < _MAIN_SHARE * run_j:
        named.append(groups.pop(0))
    if not any(name not in RESERVED for name, _ in named):  # the largest part of the model is always named
        largest = next((group for group in groups if group[0] not in RESERVED), None)
        if largest is not None:
            groups.remove(largest)
            named.append(largest)
    sum_j = fsum(joules for _, joules in named)
    words = [f"{_group_name(report, layers, name)} {_share(joules, run_j)}" for name, joules in named]
    together = f" (together {_share(sum_j, run_j)})" if len(named) > 1 else ""
    text = f"Most of it: {', '.join(words)}{together}"
    remaining = dict(groups)
    waits = [f"{_ROW_NAMES[name]} {_share(remaining[name], run_j)}" for name in (IDLE, DATA) if name in remaining]
    return f"{text}; {', '.join(waits)}." if waits else f"{text}."


def _group_name(report: Report, layers: Sequence[LayerSum], group: str) -> str:
    """Return the name of a group in a sentence."""
    if group in _ROW_NAMES:
        return _ROW_NAMES[group]
    return modules_name(group, [layer.fqn for layer in layers if not layer.reserved], module_kinds(report))


def modules_name(group: str, names: Sequence[str], kinds: Mapping[str, ModuleKind]) -> str:
    """Return the name of a group of modules, with their class where the group has only numbers, or some of a list.

    Where a list has modules of several kinds in turn, their class tells more than their numbers: `6 Attention in
    decoder.layers`, `to_q of 6 Attention in decoder.layers`.

    Args:
        group: As `GroupTree.split` names it.
        names: Of all modules.
        kinds: Their kinds.
    """
    is_numbers, match = _NUMBERS_ONLY.fullmatch(group), _SOME_OF_A_LIST.fullmatch(group)
    if not is_numbers and match is None:
        return group
    folded = fold_names(names, kinds)
    if match is None or is_numbers:
        count, kind = _count_and_class(group.removesuffix(" itself"), folded, kinds)
        if group == _ALL_NUMBERED:
            return f"all {count} {kind} modules" if kind else "all numbered modules"
        return f"{group} ({kind if count == 1 else f'{count} {kind}'})" if kind else group
    count, kind = _count_and_class(match["some"], folded, kinds)
    if not kind:
        return group
    if _class_count(match, kind, folded, kinds) > count:  # the class alone does not tell which
        return f"{group} ({count} {kind})"
    inner = f"{match['inner']} of " if match["inner"] else ""
    return f"{inner}{count} {kind} in {match['list']}"


def _cut(name: str, parts: int) -> str:
    return ".".join(name.split(".")[:parts])


def _count_and_class(pattern: str, folded: Mapping[str, str], kinds: Mapping[str, ModuleKind]) -> tuple[int, str]:
    """Return how many modules have a folded name, and their class; "" if they are of several, or of an unknown one."""
    parts = pattern.count(".") + 1
    members = {_cut(name, parts) for name, short in folded.items() if f"{short}.".startswith(f"{pattern}.")}
    classes = {kinds.get(name, ("", 0))[0] for name in members} - {""}
    return len(members), classes.pop() if len(classes) == 1 else ""


def _class_count(match: re.Match[str], kind: str, folded: Mapping[str, str], kinds: Mapping[str, ModuleKind]) -> int:
    """Return how many modules of a class a list has, as deep as those of the matched name."""
    parts, within = match["some"].count(".") + 1, f"{match['list']}."
    names = {_cut(name, parts) for name, short in folded.items() if short.startswith(within)}
    return sum(kinds.get(name, ("", 0))[0] == kind for name in names)


def _stage_sentence(report: Report) -> str:
    """Return the shares of the stages that the program or a library named, and what was idle; "" without stages."""
    stages, run_j = stage_energy_j(report), report.energy_j or 0.0
    if not stages or run_j <= 0:
        return ""
    idle_j = fsum(
        entry.energy_self_j for entry in entries_by_stage(report)[""] if entry.fqn == IDLE
    )  # fmt: skip
    if idle_j > 0:
        stages["idle"] = idle_j
        stages[""] = stages[""] - idle_j
    ordered = sorted(stages.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{stage or 'no stage'} {_share(joules, run_j)}" for stage, joules in ordered if joules > 0]
    more = f" and {len(words) - _MAX_GROUPS} more" if len(words) > _MAX_GROUPS else ""
    return f"By stage: {', '.join(words[:_MAX_GROUPS])}{more}."


def _share(energy_j: float, run_j: float) -> str:
    percent = 100 * energy_j / run_j
    return f"{percent:.0f} %" if percent >= 1 or percent <= 0 else "under 1 %"


def main_groups(report: Report, layers: Sequence[LayerSum] | None = None) -> dict[str, float]:
    """Return joules by group: the parts of the model at the level that tells most, and the reserved rows.

    Groups are containers of folded names, such as `h.*.mlp`, each with all modules inside; they add up to the total.

    Args:
        report: The run.
        layers: Its sums, where they are known already.
    """
    layers = sum_layers(report) if layers is None else layers
    modules = [layer for layer in layers if not layer.reserved]
    folded = fold_names((layer.fqn for layer in modules), module_kinds(report))
    groups = {layer.fqn: layer.energy_j for layer in layers if layer.reserved}
    tree = GroupTree([folded[layer.fqn] for layer in modules])
    return groups | tree.split(np.array([layer.energy_j for layer in modules]))


@dataclass(frozen=True, slots=True)
class Hint:
    """A sentence with its evidence, and the joules it is about."""

    text: str
    energy_j: float


def data_hint(report: Report) -> Hint | None:
    """Hint at data loading if it took more than `DATA_TIME_SHARE` of the time."""
    share = _time_share(report, DATA)
    if share <= DATA_TIME_SHARE:
        return None
    idle = max((_time_shares(ledger).get(IDLE, 0.0) for ledger in _gpus(report)), default=0.0)
    device = f", and the GPU was idle for {idle * 100:.0f} % of it" if idle >= share else ""
    return _row_hint(report, DATA, f"Waiting for data took {share * 100:.0f} % of the time{device}")


def communication_hint(report: Report) -> Hint | None:
    """Hint at communication if it took more than `COMMUNICATION_TIME_SHARE` of the time."""
    share = _time_share(report, COMMUNICATION)
    if share <= COMMUNICATION_TIME_SHARE:
        return None
    return _row_hint(report, COMMUNICATION, f"Communication took {share * 100:.0f} % of the time")


def compile_hint(report: Report) -> Hint | None:
    """Hint at compiling if it took more than `COMPILE_TIME_SHARE` of the time."""
    share = _time_share(report, COMPILE)
    if share <= COMPILE_TIME_SHARE:
        return None
    seconds = f"{format_time(share * report.duration_s)} of {format_time(report.duration_s)}"
    per_step = " and is not in the median per step" if report.step_count > 2 else ""
    return _row_hint(report, COMPILE, f"Compiling took {seconds}{per_step}")


def idle_hint(report: Report) -> Hint | None:
    """Hint at idle power if measured meters booked more than `IDLE_ENERGY_SHARE` of the joules while nothing ran."""
    idle_j = _row_j(report, IDLE, measured=True)
    if report.energy_j is None or idle_j <= IDLE_ENERGY_SHARE * report.energy_j:
        return None
    text = f"{_share(idle_j, report.energy_j)} of the joules were idle power"
    return Hint(f"{text}: {IDLE} {format_energy(idle_j)} of {format_energy(report.energy_j)}.", idle_j)


def work_hint(report: Report) -> Hint | None:
    """Hint at the batch if decoding pays `WORK_RATIO` times as much for an operation, since it reads weights for few.

    Joules are those of meters; at least half of what decode reads must be weights, which a larger batch shares.
    """
    moved = [_measured_entries(report.counted, stage) for stage in REQUEST_STAGES]
    prefill, decode = ([entry for entry in entries if entry.flops] for entries in moved)
    prefill_j, decode_j = energy_per_tflop_j(prefill), energy_per_tflop_j(decode)
    if prefill_j is None or decode_j is None or decode_j < WORK_RATIO * prefill_j:
        return None
    in_prefill, in_decode = _operations_per_byte(prefill), _operations_per_byte(decode)
    more_j = total_self_j(decode) * (1.0 - prefill_j / decode_j)
    weights = _weight_share(report, decode)
    if in_prefill < WORK_RATIO * in_decode or more_j <= WORK_ENERGY_SHARE * (report.energy_j or 0.0) or weights < 0.5:
        return None
    text = (
        f"Decode took {format_energy(decode_j)} per TFLOP, prefill {format_energy(prefill_j)}: it does {in_decode:.2g} "
        f"operations per byte instead of {in_prefill:.2g}, and {weights * 100:.0f} % of the bytes are weights, which a "
        "larger batch reads once for all."
    )
    return Hint(text, more_j)


def dtype_hint(report: Report) -> Hint | None:
    """Hint at 16 bits if a measured GPU reads float32 weights for most of decode.

    Where reading takes the time, half of the bytes of these weights take half of their joules; that part must be more
    than `WORK_ENERGY_SHARE` of the run.
    """
    decode = _measured_entries(_gpus(report), DECODE)
    if not decode:
        return None
    wide = _weight_share(report, decode, dtype="float32")
    saved_j = total_self_j(decode) * wide / 2.0
    if wide < 0.5 or saved_j <= WORK_ENERGY_SHARE * (report.energy_j or 0.0):
        return None
    text = f"Decode reads weights of float32, {wide * 100:.0f} % of its bytes: bfloat16 has half of them"
    return Hint(f"{text}, and its layers took {format_energy(total_self_j(decode))} on the GPU.", saved_j)


def _measured_entries(ledgers: Iterable[Ledger], stage: str) -> list[Entry]:
    """Return the entries of a stage with known bytes, of the measured ones among some ledgers."""
    measured = (ledger for ledger in ledgers if ledger.provenance == "measured")
    return [entry for ledger in measured for entry in ledger.entries if entry.stage == stage and entry.bytes_moved]


def _weight_share(report: Report, entries: Sequence[Entry], dtype: str = "") -> float:
    """Return the part of the bytes of entries that are parameters, of one type or any, read once a call."""
    modules = [module for module in report.modules if dtype in {"", module.dtype}]
    size = {name: m.param_bytes for m in modules for name in (m.fqn, *m.aliases)}
    read = fsum(size.get(entry.fqn, 0) * (entry.calls or 0) for entry in entries)
    return read / fsum(entry.bytes_moved or 0.0 for entry in entries)


def _operations_per_byte(entries: Sequence[Entry]) -> float:
    return (common_work(entries, "flops") or 0.0) / (common_work(entries, "bytes_moved") or 1.0)


HINTS: tuple[Callable[[Report], Hint | None], ...] = (
    data_hint, communication_hint, compile_hint, idle_hint, work_hint, dtype_hint,
)  # fmt: skip


def _row_hint(report: Report, row: str, text: str) -> Hint:
    energy_j = _row_j(report, row)
    return Hint(f"{text}: {row} {format_energy(energy_j)} of {format_energy(report.energy_j)}.", energy_j)


def _row_j(report: Report, row: str, *, measured: bool = False) -> float:
    ledgers = [ledger for ledger in report.counted if not measured or ledger.provenance == "measured"]
    return fsum(e.energy_self_j for ledger in ledgers for e in ledger.entries if e.fqn == row)


def _time_share(report: Report, row: str) -> float:
    """Return the largest share of the run's time, among the counted domains, that a row took."""
    return max((_time_shares(ledger).get(row, 0.0) for ledger in report.counted), default=0.0)


def _time_shares(ledger: Ledger) -> dict[str, float]:
    seconds: dict[str, list[float]] = defaultdict(list)
    for entry in ledger.entries:
        seconds[entry.fqn].append(entry.time_self_s)
    return {row: fsum(times) / ledger.window_s for row, times in seconds.items()} if ledger.window_s > 0 else {}


def _gpus(report: Report) -> list[Ledger]:
    return [ledger for ledger in report.counted if ledger.domain.kind == "gpu"]
