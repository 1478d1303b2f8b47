"""Every event code, and what it means: the second half of docs/faults.md. A test compares it with the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "torchwatt"
CODE = re.compile(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)*")
# What makes an event, or a value with a code that becomes one.
MAKERS = {
    "Event", "event", "event_now", "note", "counter_event", "PricingNote", "fault", "report_fault", "SensorError",
    "PageChange",
}  # fmt: skip
LISTS = {"failures.append"}  # of (subject, code, message)
TABLES = {"_CODES"}  # of the errors of a driver or of the kernel, by their number

EVENTS: dict[str, dict[str, str]] = {
    "Meters": {
        "COVERAGE": "a meter was known for a part of the run only; the joules of the rest are unknown and not counted",
        "SENSOR_LOST": "a meter stopped answering: the device or its file is gone",
        "SENSOR_BACK": "that meter answers again; says after how long",
        "SENSOR_MISSING": "there is no driver, no library or no reader for a meter",
        "SENSOR_ERROR": "a meter answered with an error, or with what is no number",
        "SENSOR_HANG": "one read of a meter took longer than half a second",
        "NO_PERMISSION": "this user may not read a meter",
        "NOT_SUPPORTED": "the device or its driver does not have this reading",
        "EDGE_READ_TIMEOUT": "a counter did not answer at an end of the run; the sampler's readings are used",
        "EDGE_LOST": "the last reading of the run failed; the sampler's readings are used",
        "GPU_APPEARED": "a GPU that was not there at the start of the run is there at its end; it was not metered",
        "VISIBLE_DEVICES": "`CUDA_VISIBLE_DEVICES` names no such device, or CUDA may number GPUs otherwise",
        "SHARED_DEVICE": "a slice of a card (MIG), or a card with other processes: their joules are included",
        "THROTTLED": "the GPU lowered its clocks; says why and in how many readings",
        "RING_UNUSED": "the driver's own power samples are not used, for the reason that is given; the polled power is",
    },
    "Energy": {
        "COUNTER_WRAP": "a counter reached its largest value and went on from 0; no joule is lost",
        "COUNTER_RESET": "a counter went backwards; its joules are from power readings, or from the power around",
        "COUNTER_JUMP": "a counter rose by more than the device can draw; filled likewise, or the reading is left out",
        "COUNTER_FROZEN": "a counter did not change while the device worked; filled likewise, or unknown",
        "COUNTER_LOST": "a counter was reset while nobody could read it; the joules of that time are unknown",
        "COUNTER_UNSURE": "nobody read for so long that the counter may have wrapped more than once",
        "COUNTER_LATE": "reads of a counter took so long that their instant is unknown; later readings are used",
        "POWER_ABSURD": "power readings that no device can draw were left out",
        "POWER_FROZEN": "a power sensor repeats one value; joules by that value have this warning",
        "ZERO_READING": "a sensor says about 0 W of a device that works; such readings are left out",
        "OVER_LIMIT": "the mean power is above the card's own limit; the meter is called unchecked",
        "CROSS_CHECK": "the counter and the integrated power disagree; the interval reaches to the other one",
        "SCOPE_UNKNOWN": "what an energy counter covers could not be told; the interval reaches to the other reading",
        "MODULE_COUNTER": "the energy counter covers a whole superchip, which counts once",
        "PHASES_UNSEEN": "steps ran in sync with the power sensor; parts of a step were never sampled",
        "PART_TIME_POWER": "the power sensor looks at a part of the time, and no steps tell which part",
        "READ_SELDOM": "power was read so seldom that more than 10 % of the joules are open",
        "SAMPLE_GAP": "there are no readings for the time that is given",
    },
    "Sampling and clocks": {
        "SAMPLER_THREAD": "readings are taken by threads of the program, since the sampler process is not there",
        "SAMPLER_LOST": "no readings could be taken",
        "SAMPLER_STOPPED": "the sampler process was suspended (SIGSTOP, a debugger) at the end of the run",
        "SAMPLER_THINNED": "memory for readings was full: every other one was kept and the period doubled",
        "CLOCK_STEP": "the wall clock was set during the run; durations do not depend on it",
        "CLOCK_STEPPED": "the wall clock was set while a window was recorded; that window is left out",
        "CLOCK_REPLACED": "the program replaced `time.monotonic_ns`; times of steps and layers are of its clock",
        "READINGS_LOST": "the readings could not be collected",
        "READINGS_LEFT_OUT": "lines or cells of a power log could not be used",
    },
    "Layers": {
        "NO_DEVICE_TIMELINE": "no kernels of a GPU were recorded; its joules are `(unattributed)`",
        "TIME_SHARE": "joules of a GPU's layers are shared by time, since the readings could not carry a fit; says why",
        "LIBRARY_UNKNOWN": "stages and tokens of libraries are not recorded, for the reason that is given",
        "POOLED": "small kinds of work were put together before the fit",
        "ACTIVITY": "a note about the recorded kernels of a GPU",
        "DITHERED": "steps were followed by random pauses (`dither_s`); says how long",
        "DEVICE_BUSY": "a GPU still worked a minute after the block had ended; that work is not in the run",
        "BUDGET_EXCEEDED": "tracing cost more than `overhead_budget` allows, because steps are short",
        "CALLS_FILLED": "outermost calls were not traced inside; their layers are filled in from traced ones",
        "CALLS_UNLIKE": "outermost calls of modules that were never traced inside: their layers are unknown",
        "STAGE_INSIDE_CALL": (
            "a stage was opened inside the call of a module: its joules are in the stage around that call"
        ),
        "STEPS_FILLED": "steps of which only the end was noted; their layers are filled in from traced ones",
        "STEPS_UNLIKE": "steps like none that was traced: their joules are `(unattributed)`",
        "STEPS_FOLDED": "of steps that were not traced only sums over neighbouring steps are kept",
        "SPANS_SAMPLED": "the limit on spans in memory was reached; steps are traced more rarely from then on",
        "TEMPLATE_MISMATCH": "backward calls were filled in from one with another structure",
        "BACKWARD_UNTRACED": "backward calls that no window recorded: their layers are unknown",
        "PATHS_UNKNOWN": "whether some modules ran in some steps is unknown; their calls are empty",
        "COMPILED_WHOLE": "a function was compiled as a whole: it is one row, not its layers",
        "PROFILER_BUSY": "another profiler was running, so nothing was recorded meanwhile",
        "WINDOW_FAILED": "recording of windows failed and was given up for this run",
        "WINDOW_LOST": "a recorded window could not be joined to the modules",
        "TRACE_UNSUPPORTED": "this torch lacks something that tracing needs; says what is missing for it",
        "TRACE_FAILED": "the trace could not be built: a fault of torchwatt; joules are kept",
        "TRACE_LOST": "modules could not be traced: a fault of torchwatt; joules are kept",
        "ATTRIBUTION_LOST": "layers could not be computed: a fault of torchwatt; joules are kept",
        "SETTLING_LOST": "the report could not be made: a fault of torchwatt; it has no joules",
    },
    "What the total includes": {
        "CHILD_PROCESSES": "child processes used CPU time; their work is not traced",
        "DEVICE_USER_UNKNOWN": "a card counts, but may have been used by others",
        "OTHER_PROCESSES": "a card was used by others only; it is not in the total",
        "OTHER_CARDS": "cards of a power log that the trace does not use; they are not in the total",
        "NESTED_SESSION": "the run lies inside another one, which includes its joules",
        "CONCURRENT_SESSION": "another run metered the same devices at the same time; do not add them up",
        "LEFT_OPEN": "the run was still open when the program or the training ended",
    },
    "Grams": {
        "FACTOR_FALLBACK": "another factor than the first in order was used; says why",
        "FACTOR_MISSING": "no factor covers the run: there are no grams",
        "FACTOR_UNUSABLE": "a factor could not be applied at the end of the run: there are no grams",
        "FACTOR_YEAR": "a factor is data of a later year than the run",
        "FACTOR_OLD": "a factor is data of more than five years before the run",
        "EMBODIED_PARTIAL": "some devices have no embodied figures; totals leave them out",
        "PE_BELOW_3_6": "a published primary energy is below the 3.6 MJ of the kilowatt-hour itself",
    },
    "Journal": {
        "NO_JOURNAL": "a default journal could not be made; the run goes on",
        "JOURNAL_STOPPED": "the journal could not be written any more; the run went on",
        "JOURNAL_THINNED": "the journal was full: older readings were thinned out",
        "JOURNAL_DAMAGED": "parts of a journal could not be read",
        "JOURNAL_MISSING": "one of a journal's two files is missing",
        "RECOVERED": "the report was made from a journal; says how the run ended and what is lost",
        "NOT_BEGUN": "the process was killed before the run began",
        "LAYERS_END": "up to when layers are known; the joules after that are `(unattributed)`",
    },
    "Jobs of several ranks": {
        "RANK": "which meters a rank reads; in a rank's own report only",
        "RANK_SHARES_GPU": "a node has more ranks than GPUs",
        "RANK_MISSING": "a rank left no result",
        "RANK_LATE": "a rank began long after the first one",
        "CLOCK_UNMEASURED": "ranks are placed by their wall clocks, whose error is unknown",
        "DEVICE_OF_NO_RANK": "no rank used a device; it is not in the total",
        "JOB_LOST": "this rank's part of the job could not be written",
    },
    "Power logs and saved traces": {
        "CLOCK_ASSUMED": "times of a log name no time zone and are read as UTC",
        "CLOCK_SET_BACK": "the clock of a log went back by an hour, as summer time ends",
        "DATE_ASSUMED": "times of a log have no date; the trace's is taken",
        "OFFSET_FITTED": "the log's clock was matched to the trace by the power; says by how much and how surely",
        "CARDS_BY_INDEX": "cards of a log were matched to the trace's devices by index",
        "CARDS_BY_ORDER": "cards of a log were told apart by their order alone",
        "TRACE_NOTE": "a note about a saved trace",
        "CALIBRATION_UNREADABLE": "the file of calibrations could not be read; nominal responses are used",
    },
    "Training and live metrics": {
        "BUDGET_REACHED": "an energy or carbon budget was reached; training ended",
        "BUDGET_UNMETERED": "no meter is there, so a budget does not end training",
        "BEGAN_AGAIN": "the training loop started again (a smaller batch); all attempts are included",
        "METERING_FAILED": "a fault of torchwatt ended metering; training went on",
        "CODECARBON_BESIDE": "codecarbon meters the same devices; do not add its figures to ours",
        "METRICS_LOST": "an exporter of live metrics failed; the run went on",
    },
    "Watched servers": {
        "SERVER_COUNTERS": "which server was found, and by which counters its tokens are known",
        "SERVER_SILENT": "the page could not be read; tokens are unknown, and not 0, until it can be",
        "SERVER_BACK": "the page can be read again; says for how long it could not, and whether tokens are known",
        "SERVER_RESTART": "the server has started again: tokens between the last page before and the next are unknown",
        "SERVER_LABELS": "series of the counters are new, and count from 0, or are gone, and tokens are unknown",
        "SERVER_TOKENS": "the tokens of a model in windows in which they are known",
        "SERVER_SLOW": "a page took more than half of the interval, so that its instant is known no better",
        "SERVER_ELSEWHERE": "the address is not of this machine's loopback interface; the meters are this machine's",
        "SERVER_EVENTS": "the server had so many events that some are left out; says how many",
        "TOKENS_PARTIAL": "tokens are known for a part of the run; joules per token are of that part",
        "TOKENS_EDGE": "requests ran at the first or the last page, of a server that counts tokens when a request ends",
        "TOKENS_ROUNDED": "the page has too few digits for the counters; says how far tokens may be off",
    },
}


def events_markdown() -> str:
    """Return the lists of codes for the page."""
    lines = ["", '<a id="event-codes"></a>', "", "## Every event code", ""]
    lines.append("Events are in `run.events`, in `event.csv` of a bundle, and in the pages. Codes are stable.")
    for group, codes in EVENTS.items():
        lines += ["", f"### {group}", "", "| code | what it says |", "|---|---|"]
        lines += [f"| `{code}` | {meaning} |" for code, meaning in codes.items()]
    return "\n".join(lines) + "\n"


def event_codes() -> frozenset[str]:
    """Return all codes of the page."""
    return frozenset(code for codes in EVENTS.values() for code in codes)


@cache
def codes_in_source() -> frozenset[str]:
    """Return the codes with which the source makes events."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))]
    constants = {name: text for tree in trees for name, text in _constants(tree)}
    return frozenset(code for tree in trees for code in _codes(tree, constants))


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((target.id, node.value.value) for target in node.targets if isinstance(target, ast.Name))


def _codes(tree: ast.Module, constants: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (ast.unparse(node.func) in LISTS or _called(node) in MAKERS):
            for part in (*node.args, *(word.value for word in node.keywords if word.arg == "code")):
                yield from _words(part, constants)
        elif isinstance(node, ast.Assign) and {_name(target) for target in _targets(node)} & {"code", *TABLES}:
            yield from _words(node.value, constants)


def _called(node: ast.Call) -> str:
    """Return the last name of what is called, without underscores in front."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else _name(node.func)
    return name.lstrip("_")


def _targets(node: ast.Assign) -> Iterator[ast.expr]:
    for target in node.targets:
        yield from target.elts if isinstance(target, ast.Tuple) else (target,)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _words(node: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    for inner in ast.walk(node):
        text = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(inner, ast.Name):
            text = constants.get(inner.id)
        if isinstance(text, str) and CODE.fullmatch(text):
            yield text
