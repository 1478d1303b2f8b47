"""Faults of the machine around the program: no descriptors, no memory, no disk, no /proc, processes that stop.

Runs in a process of its own: limits are set and lifted here, and neither torch nor the simulator is loaded.
"""

from __future__ import annotations

import _thread
import builtins
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torchwatt as tw
from tests.faults.powercap import failing
from tests.faults.registry import Seen, fault, proved
from tests.support.chosen import chosen
from tests.support.powercap import FakePowercap
from torchwatt.core.report import Report
from torchwatt.sensors.readers import process_tree

GROUP = "The machine and its processes"
SAMPLER = "tests/sensors/test_sensors_sampler.py::"
LIFE = "tests/session/test_lifecycle.py::"


def metered(folder: Path) -> FakePowercap:
    """Return a package and its memory that draw 40 and 5 W in real time."""
    return FakePowercap(folder / f"machine{len(list(folder.iterdir()))}")


def profiled(tree: FakePowercap, seconds: float = 0.1, **options: Any) -> Report:
    """Profile a short sleep; it must not raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say stands in the report
        with tw.profile(layers="off", powercap_root=tree.root, baseline_s=0.1, **options) as run:
            time.sleep(seconds)
    return run.report


@contextmanager
def limited(which: int, soft: int) -> Iterator[None]:
    """Lower a limit of this process for a while."""
    old = resource.getrlimit(which)
    resource.setrlimit(which, (soft, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, old)


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Put other attributes in place for a while."""
    old = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(owner, name, value)


def refused(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises."""

    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def holds(report: Report, rel: float = 0.1) -> None:
    """Check every metered domain against its watts, as far as it was known."""
    for ledger in report.ledgers:
        watts = {"cpu:0": 40.0, "dram:0": 5.0}.get(str(ledger.domain))
        if watts is not None:
            assert abs(ledger.energy_j - watts * ledger.known_s) <= rel * watts * ledger.known_s + watts * 0.02, ledger


@contextmanager
def descriptors(left: int) -> Iterator[None]:
    """Leave so many descriptors to be opened, whatever holes there were."""
    most = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 40
    taken: list[int] = []
    with limited(resource.RLIMIT_NOFILE, most):
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for fd in taken[:left]:
            os.close(fd)
        try:
            yield
        finally:
            for fd in taken[left:]:
                os.close(fd)


MOST_TELLING = (0, 6, 20)  # of which every file and view is looked at


@fault(
    GROUP,
    "out of file descriptors, at each descriptor that a run would open",
    sees="threads instead of a process (`SAMPLER_THREAD`); `partial` and `SAMPLER_LOST` where nothing goes",
    keeps="the user's program; the joules wherever there were descriptors enough",
)
def no_descriptors(folder: Path) -> Iterator[Seen]:
    with metered(folder) as tree:
        profiled(tree)  # imports what it needs
        some = {*map(str, MOST_TELLING), *chosen(map(str, range(13)), 1)}
        for left in sorted(map(int, some)):
            with descriptors(left):
                report = profiled(tree)
            holds(report)
            yield Seen.of(report, idle_may_be_0=True, files=left in MOST_TELLING)


@fault(
    GROUP,
    "out of address space, or of memory for the sampler's rings",
    sees="`partial`, `SAMPLER_LOST`, `unavailable`; with a little more room nothing",
    keeps="the user's program; the joules wherever there was room",
)
def no_address_space(folder: Path) -> Iterator[Seen]:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    with metered(folder) as tree:
        for more in (4 << 20, 24 << 20, 64 << 20, 1 << 30):
            with limited(resource.RLIMIT_AS, size + more):
                report = profiled(tree)
            holds(report)
            yield Seen.of(report, idle_may_be_0=True)


@fault(
    GROUP,
    "no memfd, no /dev/shm and no temporary folder",
    sees="`partial`, `SAMPLER_LOST`, `unavailable` with the reason",
    keeps="the user's program",
)
def no_shared_memory(folder: Path) -> Iterator[Seen]:
    gone = OSError(28, "No space left on device")
    with metered(folder) as tree, replaced(os, memfd_create=refused(gone)):
        holds(report := profiled(tree))  # an unlinked temporary file does as well
        assert report.ledgers
        with replaced(tempfile, TemporaryFile=refused(FileNotFoundError(2, "no usable temporary directory"))):
            report = profiled(tree)
    yield Seen.of(report, idle_may_be_0=True)


@fault(
    GROUP,
    "no more threads",
    sees="`partial`, `SAMPLER_LOST`, `unavailable` with the reason",
    keeps="the user's program",
)
def no_threads(folder: Path) -> Iterator[Seen]:
    with metered(folder) as tree, replaced(_thread, start_new_thread=refused(RuntimeError("can't start new thread"))):
        report = profiled(tree)
    yield Seen.of(report, idle_may_be_0=True)


@fault(
    GROUP,
    "a full disk, a read-only home, a limit on the size of files, when the files of the run are written",
    sees="a warning that names the file",
    keeps="the run in memory; no half-written bundle",
    proofs=["tests/audit/test_bundle.py::test_a_number_that_is_none_leaves_nothing_behind"],
)
def no_disk(folder: Path) -> Iterator[Seen]:
    target = folder / f"disk{len(list(folder.iterdir()))}"
    target.mkdir()
    with metered(folder) as tree, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = tw.profile(layers="off", powercap_root=tree.root, csv=target / "csv", html=target / "a.html", keep=target)
        result = run.__enter__()
        time.sleep(0.1)
        with limited(resource.RLIMIT_FSIZE, 0):
            run.__exit__(None, None, None)
    assert len([w for w in told if "could not write" in str(w.message)]) == 3, [str(w.message) for w in told]
    assert not list(target.glob("csv/*")), list(target.rglob("*"))
    assert not [path for path in target.rglob("*") if path.suffix in {".html", ".csv"}]
    assert result.energy_j is not None
    yield Seen.of(result.report, idle_may_be_0=True)


@fault(
    GROUP,
    "/proc cannot be read (hidepid, a sandbox)",
    sees="the process's clock is told as missing: nothing is called idle; an event for what failed",
    keeps="the joules of all meters",
)
def no_proc(folder: Path) -> Iterator[Seen]:
    hook = failing("/proc/stat", 13, 0.0, 9e9)
    blind = replaced(process_tree, descendant_pids=refused(PermissionError(13, "denied")))
    # In threads of this process, where the files are refused.
    with metered(folder) as tree, hook, blind, replaced(sys, executable=""):
        report = profiled(tree)
    assert {str(led.domain) for led in report.ledgers} == {"cpu:0", "dram:0"}
    holds(report)
    yield Seen.of(report)


@fault(
    GROUP,
    "psutil is missing",
    sees="nothing on Linux, which needs it for nothing; elsewhere the models are `unavailable`",
    keeps="the joules of all meters",
)
def no_psutil(folder: Path) -> Iterator[Seen]:
    real = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "psutil":
            raise ImportError("No module named 'psutil'")
        return real(name, *args, **kwargs)

    with replaced(builtins, __import__=importing), suppress(KeyError):
        saved = sys.modules.pop("psutil", None)
        with metered(folder) as tree:
            report = profiled(tree)
            holds(report)
            yield Seen.of(report)
        elsewhere = replaced(process_tree, _HAS_PROC=False), replaced(sys, executable="")
        modelled = tw.profile(layers="off", powercap_root=folder / "nothing", baseline_s=0.1)
        with elsewhere[0], elsewhere[1], modelled as run:
            time.sleep(0.1)
        yield Seen.of(run.report, idle_may_be_0=True)
        if saved is not None:
            sys.modules["psutil"] = saved


STOPPED_S = 0.5


def _state(pid: int) -> str:
    """Return the state of a process; empty where it has ended: init takes it from the list when it gets to it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    return "" if state in {"Z", "X"} else state


@fault(
    GROUP,
    "the sampler is stopped (SIGSTOP) for a while, or until the end",
    sees="`SAMPLE_GAP` when it goes on, `SAMPLER_STOPPED` with the reason where it does not",
    keeps="the counters' joules: both edges are read in the user's process",
)
def stopped_sampler(folder: Path) -> Iterator[Seen]:
    for goes_on in (True, False):
        with metered(folder) as tree:
            with tw.profile(layers="off", powercap_root=tree.root) as run:
                pid = run._session.feed.sampler_pid
                assert pid, "the machine was too busy to start a sampler within two seconds"
                os.kill(pid, signal.SIGSTOP)
                time.sleep(STOPPED_S)
                if goes_on:
                    os.kill(pid, signal.SIGCONT)
                    time.sleep(0.1)
            holds(run.report)
            # Nothing of the time for which it stood still is missing; a busy machine may read late at both edges.
            assert all(led.window_s - led.known_s < STOPPED_S / 2 for led in run.report.ledgers)
            end_s = time.monotonic() + 20.0
            while (state := _state(pid)) and time.monotonic() < end_s:
                time.sleep(0.02)
            assert not state, f"the sampler is still there, in state {state}"
            assert goes_on != any(event.code == "SAMPLER_STOPPED" for event in run.report.events)
            yield Seen.of(run.report)


@fault(
    GROUP,
    "a limit on the size of files (ulimit -f) from the start of the program",
    sees="nothing, with rings as long as it allows; `SAMPLER_THREAD` below 256 KiB",
    keeps="every joule",
)
def small_files(folder: Path) -> Iterator[Seen]:
    code = """
with tw.profile(layers="off") as run:
    time.sleep(0.6)
told(run)
"""
    for kib in (4096, 255):
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({kib * 1024}, {kib * 1024}))\n"
        with metered(folder) as tree:
            rc, out, err = _script(tree, limit + code, files=False)
        assert (rc, err) == (0, ""), err
        codes, watts, _ = json.loads(out.splitlines()[-1])
        assert abs(watts["cpu:0"] / 40 - 1) < 0.1
        assert ("SAMPLER_THREAD" in codes) == (kib < 256), (kib, codes)
        yield Seen(frozenset(codes))


_SCRIPT = """
import json, os, sys, time
import torchwatt as tw
from tests.faults.registry import Seen
def told(run):
    report = run.report
    watts = {str(l.domain): l.energy_j / l.known_s for l in report.ledgers}
    print(json.dumps([sorted(Seen.of(report, files={files}).codes), watts, report.duration_s]), flush=True)
"""


def _script(
    tree: FakePowercap,
    code: str,
    during: Callable[[subprocess.Popen[str]], None] | None = None,
    *,
    files: bool = True,
) -> list[Any]:
    env = {**os.environ, "TORCHWATT_POWERCAP_ROOT": str(tree.root)}
    argv = [sys.executable, "-c", _SCRIPT.replace("{files}", str(files)) + code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as child:
        if during is not None:
            during(child)
        out, err = child.communicate(timeout=60)
    return [child.returncode, out, err]


@fault(
    GROUP,
    "the user's process is stopped for a while (SIGSTOP, a laptop's lid, a debugger)",
    sees="a run that lasted as long as it lasted",
    keeps="the joules, also of the time in which it stood still: the sampler goes on",
)
def stopped_user(folder: Path) -> Iterator[Seen]:
    def stop(child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        child.stdout.readline()
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(0.7)
        os.kill(child.pid, signal.SIGCONT)

    code = """
with tw.profile(layers="off") as run:
    print("in", flush=True)
    time.sleep(0.3)
told(run)
"""
    with metered(folder) as tree:
        rc, out, err = _script(tree, code, stop)
    assert (rc, err) == (0, ""), err
    codes, watts, seconds = json.loads(out.splitlines()[-1])
    assert seconds > 0.65
    assert abs(watts["cpu:0"] / 40 - 1) < 0.1
    yield Seen(frozenset(codes))


@fault(
    GROUP,
    "forks and spawned processes inside the block (multiprocessing)",
    sees="nothing from the children",
    keeps="the parent's run; children run as without us",
    proofs=[
        LIFE + "test_dataloader_workers_inherit_nothing_that_runs",
        LIFE + "test_a_forked_child_does_nothing_with_its_parents_session",
        SAMPLER + "test_a_forked_child_inherits_nothing_that_runs",
        SAMPLER + "test_a_child_that_lives_on_does_not_keep_the_sampler",
    ],
)
def children(folder: Path) -> Iterator[Seen]:
    code = """
import math, multiprocessing as mp
with tw.profile(layers="off") as run:
    for how in ("fork", "spawn"):
        with mp.get_context(how).Pool(2) as pool:
            assert pool.map(math.sqrt, [1.0, 4.0]) == [1.0, 2.0]
    if os.fork() == 0:
        run.step(), run.count("x"), run.energy_j
        sys.exit(0)  # runs every exit handler in the child
    os.wait()
told(run)
"""
    with metered(folder) as tree:
        rc, out, err = _script(tree, code)
    assert (rc, err) == (0, ""), err
    codes, watts, _ = json.loads(out.splitlines()[-1])
    assert abs(watts["cpu:0"] / 40 - 1) < 0.1
    yield Seen(frozenset(codes))


@fault(
    GROUP,
    "os._exit inside the block",
    sees="nothing: the program is gone, with the exit code it chose",
    keeps="no report; no process and no file is left behind",
    proofs=[SAMPLER + "test_the_sampler_dies_with_its_parent_even_if_a_worker_lives_on"],
)
def hard_exit(folder: Path) -> Iterator[Seen]:
    code = """
with tw.profile(layers="off") as run:
    print(run._session.feed.sampler_pid, flush=True)
    os._exit(7)
"""
    with metered(folder) as tree:
        rc, out, err = _script(tree, code)
    assert (rc, err) == (7, "")
    end_s = time.monotonic() + 10
    while _runs(int(out)) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not _runs(int(out))
    yield Seen(frozenset())


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


proved(
    GROUP,
    "the sampler is killed, or cannot be started at all",
    sees="SAMPLER_THREAD: sampling in threads of the program from then on",
    keeps="all readings before, and the rest of the run",
    by=[
        SAMPLER + "test_threads_take_over_from_a_sampler_that_was_killed",
        SAMPLER + "test_where_no_process_can_be_started_threads_sample_and_say_so",
        LIFE + "test_killing_the_sampler_loses_no_run",
    ],
)
proved(
    GROUP,
    "the interpreter shuts down inside the block",
    sees="status partial, LEFT_OPEN: still open when the program ended",
    keeps="the report and its files",
    by=[
        LIFE + "test_a_session_left_open_is_closed_with_the_program_and_its_files_are_written",
        SAMPLER + "test_an_exit_without_stop_leaves_no_process_and_no_noise",
    ],
)
