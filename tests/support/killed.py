"""Small profiled trainings in processes of their own, which are killed, and what their journals then give."""

import os
import random
import signal
import time
from dataclasses import dataclass
from math import fsum, isclose
from pathlib import Path

import psutil
import torch
from torch import nn

import torchwatt as tw
from torchwatt.audit import verify
from torchwatt.core.journal_format import Frame, FrameKind, decode_frames
from torchwatt.journal.journal_directory import WORK_FILE
from torchwatt.journal.journal_reader import read_journal, rebuild_recording
from torchwatt.journal.recovery import recover_report
from torchwatt.reports.output_files import write_csv

WAYS = ("owner", "group", "both", "sampler first", "sampler alone")


@dataclass(frozen=True)
class Result:
    """One killed run: which way, when after its journal was made, and what came of it."""

    way: str
    after_s: float
    loss_s: float
    status: str
    balanced: bool
    verified: bool
    error_rel: float | None  # of the package's joules, against what the tree really counted
    layers_s: float  # how much of the run has layers
    run_s: float
    left_over: bool  # the sampler did not end itself
    problem: str = ""

    @property
    def recovered(self):
        return self.balanced and self.verified and not self.problem


def train(journal, powercap, seconds):
    """Train until killed, or for some seconds."""
    net = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(4)], nn.Linear(64, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    x = torch.randn(32, 64)
    with tw.profile(net, journal=journal, powercap_root=powercap, live="off") as run:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            run.count("image", 32)
            time.sleep(0.004)  # as long as a real step waits for its data; several run at once


def start(journal, powercap, seconds):
    """Fork a training; torch must not have run a backward pass in this process."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(quiet, fd)
        train(journal, powercap, seconds)
    finally:
        os._exit(0)


def sampler_of(pid):
    """Return the process id of a training's sampler, None while there is none."""
    try:
        return next((child.pid for child in psutil.Process(pid).children() if child.status() != "zombie"), None)
    except psutil.Error:
        return None


def kill(pid, way):
    """Kill in one way and return when: just before the first signal that costs samples."""
    sampler = sampler_of(pid) if way in {"both", "sampler first", "sampler alone"} else None
    at_ns = time.monotonic_ns()
    if sampler is not None:
        os.kill(sampler, signal.SIGKILL)
    if way in {"sampler first", "sampler alone"}:
        time.sleep(0.7)
        if way == "sampler first":
            at_ns = time.monotonic_ns()
    if way == "group":
        os.killpg(pid, signal.SIGKILL)
    elif way != "sampler alone":
        os.kill(pid, signal.SIGKILL)
    return at_ns


def kill_one(tree, folder: Path, seed: int, *, longest_s: float = 3.0) -> Result:
    """Start a training, kill it in some way at a random moment and look at what its journal gives."""
    rng = random.Random(seed)
    way, after_s = WAYS[seed % len(WAYS)], rng.uniform(0.0, longest_s)
    # One in five ends by itself at about the moment of the kill: stopping is killed as well.
    ends = rng.random() < 0.2 or way == "sampler alone"
    return killed(
        tree, folder / f"journal{seed}", way, after_s, max(after_s - rng.uniform(0.2, 0.7), 0) if ends else 60
    )


def killed(tree, journal: Path, way: str, after_s: float, seconds: float = 60.0, *, spans: bool = False) -> Result:
    """Start a training of some seconds, kill it some time after its journal was made, look at what that gives.

    With `spans` the time is counted from when the journal first says who ran.
    """
    pid = start(journal, tree.root, seconds)
    samplers = set()
    while not (journal / WORK_FILE).exists() or (spans and not has_spans(journal)):
        time.sleep(0.002)
    made_s = time.monotonic()
    while time.monotonic() < made_s + after_s:
        samplers.add(sampler_of(pid))
        time.sleep(min(0.05, max(made_s + after_s - time.monotonic(), 0)))
    samplers.add(sampler_of(pid))
    at_ns = kill(pid, way)
    os.waitpid(pid, 0)
    left_over = not ended(samplers)
    return looked_at(tree, journal, way=way, after_s=after_s, at_ns=at_ns, left_over=left_over)


def has_spans(journal):
    """Return whether a journal says who ran."""
    return any(
        isinstance(part, Frame) and part.kind == FrameKind.TRACE
        for part in decode_frames((journal / WORK_FILE).read_bytes())
    )


def ended(pids, timeout_s=30.0):
    """Wait until processes are gone; whether they are."""
    end_s = time.monotonic() + timeout_s
    while any(pid is not None and psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


def looked_at(tree, journal, *, way, after_s, at_ns, left_over):
    """Recover a journal and check everything that can be."""
    try:
        found = read_journal(journal)
        report = recover_report(found)
        bundle = write_csv(report, journal.with_suffix(".bundle"))
        checked = verify(bundle)
    except Exception as error:
        nothing = {"status": "", "balanced": False, "verified": False, "error_rel": None, "layers_s": 0.0, "run_s": 0.0}
        return Result(way, after_s, float("inf"), left_over=left_over, problem=repr(error), **nothing)
    recording = rebuild_recording(found)
    last_ns = max((int(s.t_ns[-1]) for s in recording.series if s.channel.name == "energy" and len(s)), default=0)
    end_ns = min(at_ns, report.end_ns) if found.stop is not None else at_ns
    balanced = all(
        isclose(fsum(e.energy_self_j for e in ledger.entries), ledger.energy_j, rel_tol=1e-9, abs_tol=1e-9)
        for ledger in report.ledgers
    )
    until = next((e.t_ns for e in report.events if e.code == "LAYERS_END"), report.end_ns)
    return Result(
        way,
        after_s,
        # Before the first reading there was nothing to lose but the time since the sampler began.
        max(end_ns - last_ns, 0) / 1e9 if last_ns else 0.0,
        report.status,
        balanced,
        checked.ok,
        error_rel(tree, report),
        max(until - report.start_ns, 0) / 1e9,
        report.duration_s,
        left_over,
        "" if checked.ok else str(checked),
    )


def error_rel(tree, report):
    """Return how far the package's joules are from the truth, None where nothing was metered."""
    for ledger, curve in zip(report.ledgers, report.curves, strict=True):
        if str(ledger.domain) == "cpu:0" and curve.end_ns - curve.start_ns > 200_000_000:
            truth_j = tree.energy_j("package-0", curve.start_ns, curve.end_ns)
            return ledger.energy_j / truth_j - 1
    return None
