"""Faults of the user's own program: names, numbers of spans, threads, signals, exceptions, the collector."""

from __future__ import annotations

import csv
import gc
import io
import os
import resource
import signal
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import torchwatt as tw
from tests.faults.registry import Seen, fault, proved
from tests.support.powercap import FakePowercap
from tests.support.reports import HOSTILE
from torchwatt.audit import verify
from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import IDLE, OPTIMIZER, RESERVED, ROOT
from torchwatt.views import to_html_page, to_text

GROUP = "The user's program"
LIFE = "tests/session/test_lifecycle.py::"
CLOSED = "tests/session/test_closed_descriptors.py::"
NAMES = (
    *HOSTILE, "nul\0nul", "\ud800 half a pair", "\u202egnp.exe", "\x1b]0;title\x07", "n" * 10_000, "a\r\nb",
    IDLE, OPTIMIZER, ROOT, "=1+1", "../../etc/passwd", "</script>", "\u2028\u2029", "🔥" * 300,
)  # fmt: skip


def metered(folder: Path) -> FakePowercap:
    """Return a package and its memory that draw 40 and 5 W in real time."""
    return FakePowercap(folder / f"live{len(list(folder.iterdir()))}")


def _net() -> nn.Module:
    net = nn.Sequential()
    for n, name in enumerate(NAMES):
        # `add_module` refuses an empty name and a dot; nothing refuses the rest.
        net.add_module(name.replace(".", "_") or str(n), nn.Linear(4, 4))
    return net


def _enter(name: str) -> None:
    try:
        with tw.scope(name):
            time.sleep(0.0005)
    except ConfigError as error:  # a row of the report's own: refused by name, before anything is booked to it
        assert name in {*RESERVED, ROOT} or not name.strip(), name
        assert "name" in str(error)  # noqa: PT017


@fault(
    GROUP,
    "names of modules, scopes and runs: formulas, HTML, newlines, NUL, RTL marks, half surrogates, 10 kB, reserved",
    sees="the names, made harmless: text in HTML, escaped in files, without control characters in a terminal",
    keeps="the run and every row; a bundle that `torchwatt verify` takes",
    proofs=[
        "tests/views/test_html_report.py::test_any_name_gives_balanced_html",
        "tests/audit/test_bundle.py::test_any_names_survive",
        "tests/audit/test_cell_codec.py::test_no_cell_starts_a_formula",
        "tests/audit/test_hostile_bundles.py::test_names_cannot_write_on_the_auditors_terminal",
    ],
)
def names(folder: Path) -> Iterator[Seen]:
    net, x = _net(), torch.ones(4, 4)
    with metered(folder) as tree, tw.profile(net, name="".join(NAMES[:12]), powercap_root=tree.root) as run:
        end_s = time.monotonic() + 0.4
        while time.monotonic() < end_s:
            net(x).sum().backward()
            for name in NAMES:
                _enter(name)
    report = run.report
    bundle = run.to_csv(folder / f"names{len(list(folder.iterdir()))}", samples="csv.gz")
    found = verify(bundle)
    assert found.ok, found.findings
    for file in bundle.glob("*.csv"):
        for row in csv.reader(io.StringIO(file.read_text(encoding="utf-8"), newline="")):
            assert not any(cell[:1] in {"=", "@"} or (cell[:1] == "+" and len(cell) > 1) for cell in row), (file, row)
    assert any("half a pair" in name for name in run.layers.fqn)
    page, text = to_html_page(report), to_text(report)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert all(unicodedata.category(c) not in {"Cc", "Cs"} or c == "\n" for c in text)
    page.encode()
    text.encode()
    yield Seen.of(report)


@fault(
    GROUP,
    "a million spans",
    sees="the steps and scopes summed up",
    keeps="the run; at most 300 MB more than before, and a report in seconds",
    proofs=["tests/tracing/test_overhead_budget.py"],
)
def spans(folder: Path) -> Iterator[Seen]:
    yield from _spans(folder, int(os.environ.get("TORCHWATT_FAULT_SPANS", "100000")))


def _spans(folder: Path, count: int) -> Iterator[Seen]:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with metered(folder) as tree, tw.profile(powercap_root=tree.root) as run:
        for _ in range(count):
            with tw.scope("tiny"):
                pass
        ended_s = time.monotonic()
    settled_s = time.monotonic() - ended_s
    more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    assert more_mb < 300, more_mb
    assert settled_s < 30, settled_s
    calls = run.layers.query("fqn == 'tiny' and domain == 'cpu:0'").calls.sum()
    assert calls == count
    yield Seen.of(run.report)


@fault(
    GROUP,
    "200 threads that enter scopes and 4 that profile, all at once",
    sees="`CONCURRENT_SESSION` in the runs that overlapped",
    keeps="every run and every scope",
    proofs=[LIFE + "test_two_threads_may_each_have_a_session_and_are_told_not_to_add"],
)
def threads(folder: Path) -> Iterator[Seen]:
    runs: list[tw.Run] = []
    errors: list[BaseException] = []
    go = threading.Event()

    def scoped() -> None:
        go.wait(10)
        for _ in range(5):
            with tw.scope("storm"):
                time.sleep(0.001)

    def profiled() -> None:
        go.wait(10)
        try:
            with tw.profile(layers="off", powercap_root=tree.root) as run:
                time.sleep(0.3)
            runs.append(run)
        except BaseException as error:
            errors.append(error)

    with metered(folder) as tree, tw.profile(powercap_root=tree.root) as outer:
        all_of_them = [threading.Thread(target=scoped) for _ in range(200)]
        all_of_them += [threading.Thread(target=profiled) for _ in range(4)]
        for thread in all_of_them:
            thread.start()
        go.set()
        for thread in all_of_them:
            thread.join()
    assert not errors, errors
    assert len(runs) == 4
    rows = outer.layers.query("fqn == 'storm' and domain == 'cpu:0'")
    assert rows.calls.sum() == 1000, rows
    for run in (outer, *runs):
        assert {str(led.domain) for led in run.report.ledgers} == {"cpu:0", "dram:0"}
        # The made counters are written by a thread of this process, which the storm keeps from it: they stand still.
        yield Seen.of(run.report, files=False)


@fault(
    GROUP,
    "signals every two milliseconds while a run starts, runs and ends",
    sees="nothing",
    keeps="the run, and the user's handler",
    proofs=[
        LIFE + "test_an_interrupt_while_a_session_begins_leaves_nothing_on",
        LIFE + "test_an_interrupt_while_a_session_ends_keeps_the_run",
        LIFE + "test_a_real_interrupt_signal_stops_the_block_and_keeps_the_report",
    ],
)
def signals(folder: Path) -> Iterator[Seen]:
    heard = [0]

    def handler(number: int, frame: object) -> None:
        heard[0] += 1

    before = signal.signal(signal.SIGALRM, handler)
    with metered(folder) as tree:
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        try:
            with tw.profile(layers="off", powercap_root=tree.root) as run:
                time.sleep(0.3)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            ours = signal.signal(signal.SIGALRM, before)
    assert ours is handler
    assert heard[0] > 50
    assert {str(led.domain) for led in run.report.ledgers} == {"cpu:0", "dram:0"}
    yield Seen.of(run.report)


@fault(
    GROUP,
    "the garbage collector, all the time",
    sees="nothing",
    keeps="the run",
)
def collector(folder: Path) -> Iterator[Seen]:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4)
    thresholds = gc.get_threshold()
    with metered(folder) as tree, tw.profile(net, powercap_root=tree.root) as run:
        gc.set_threshold(100, 1, 1000)
        try:
            for _ in range(20):
                net(x).sum().backward()
                gc.collect(1)
            gc.collect()
        finally:
            gc.set_threshold(*thresholds)
        time.sleep(0.1)
    assert {str(led.domain) for led in run.report.ledgers} == {"cpu:0", "dram:0"}
    yield Seen.of(run.report)


proved(
    GROUP,
    "an exception, an interrupt or an exit of the user's, before, in and after the block",
    sees="his exception, untouched; status aborted with its name",
    keeps="what was measured until then",
    by=[
        LIFE + "test_an_exception_passes_untouched_and_what_was_measured_is_kept",
        LIFE + "test_so_do_interrupts_and_exits",
        LIFE + "test_a_clean_sys_exit_is_a_complete_run",
        LIFE + "test_options_are_checked_before_anything_starts",
        LIFE + "test_a_fault_of_ours_at_the_end_never_takes_the_users_place",
        LIFE + "test_even_if_nothing_can_be_settled_the_users_exception_passes",
    ],
)
proved(
    GROUP,
    "all descriptors are closed, as daemons do, and their numbers become files of the program",
    sees="nothing of ours in the program's files; SENSOR_ERROR of a closed meter, JOURNAL_STOPPED of the journal",
    keeps="the program's files and exit status; the report",
    by=[
        CLOSED + "test_a_program_that_closes_all_descriptors_keeps_its_files_and_its_exit_status",
        CLOSED + "test_a_number_that_became_another_file_is_neither_used_nor_closed",
        CLOSED + "test_a_journal_is_not_appended_to_the_programs_file",
        CLOSED + "test_the_programs_file_is_not_read_as_a_counter",
    ],
)
proved(
    GROUP,
    "`time.monotonic_ns` is replaced, as by libraries that freeze time in tests",
    sees="CLOCK_REPLACED: times of steps and layers are those of the program's clock",
    keeps="the joules and the duration of the run, by the system's clock",
    by=[
        "tests/session/test_replaced_clock.py::test_a_run_lasts_as_long_as_it_lasted_and_says_that_its_clock_was_replaced"
    ],
)
proved(
    GROUP,
    "`sys.modules` is emptied at the script's end (`torchwatt run`)",
    sees="nothing; where a function was replaced that a report needs, one sentence",
    keeps="the script's exit status, and the report",
    by=["tests/cli/test_cleared_modules.py::test_a_program_without_its_modules_ends_as_it_would"],
)
