"""However a block ends, nothing is lost and nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import torchwatt as tw
from tests.conftest import run_script
from torchwatt.core.errors import ConfigError, FactorError
from torchwatt.disk.helper_thread import helper_threads
from torchwatt.sensors.sampler_process import sampler_name


def model():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))


def work(net=None, seconds=0.15):
    net = net or model()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        net(torch.ones(4, 8)).sum().backward()


def leftovers():
    """Return what a session may not leave: threads, processes, patches."""
    children = subprocess.run(["pgrep", "-f", f"{sampler_name(os.getpid())}$"], capture_output=True, text=True)
    return {
        "threads": helper_threads(),
        "children": [line for line in children.stdout.split() if line],
        "patched": nn.Module.__call__.__module__,
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


@pytest.fixture(autouse=True)
def clean():
    work(seconds=0.01)
    before = leftovers()
    yield
    after = leftovers()
    assert after["descriptors"] <= before["descriptors"] + 1  # something of torch's own may have opened meanwhile
    del before["descriptors"], after["descriptors"]
    assert after == before


def test_an_exception_passes_untouched_and_what_was_measured_is_kept():
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, tw.profile() as run:
        work()
        raise error
    assert caught.value is error
    assert (run.status, run.report.exit_reason) == ("aborted", "ValueError")
    assert run.energy_j is not None
    assert len(run.layers)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_so_do_interrupts_and_exits(kind):
    with pytest.raises(kind), tw.profile() as run:
        work()
        raise kind
    assert run.energy_j is not None


def test_a_clean_sys_exit_is_a_complete_run():
    with pytest.raises(SystemExit), tw.profile() as run:
        work()
        sys.exit(0)
    assert run.status in {"complete", "partial"}


def test_a_real_interrupt_signal_stops_the_block_and_keeps_the_report():
    timers = [threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT)) for after_s in (0.3, 5.0)]
    with pytest.raises(KeyboardInterrupt), tw.profile() as run:
        work()
        for timer in timers:
            timer.start()
        time.sleep(20)  # Python drops an interrupt that arrives inside a weakref callback: there is a second one
    for timer in timers:
        timer.cancel()
    assert run.report.exit_reason == "KeyboardInterrupt"
    assert run.energy_j is not None


def test_a_nested_session_is_a_window_of_the_outer_one():
    net = model()
    with tw.profile(net, name="outer") as outer:
        work(net)
        with tw.profile(net, name="inner") as inner:
            work(net)
        work(net)
    window = outer.report.windows[0]
    assert window.name == "inner"
    assert window.energy_j == pytest.approx(inner.energy_j, rel=0.05)
    assert 0 < inner.energy_j < outer.energy_j
    assert inner.report.sampler.mode == outer.report.sampler.mode == "process"
    assert set(inner.layers.fqn) <= set(outer.layers.fqn)


def test_a_nested_session_is_read_from_the_outer_ones_curves():
    from torchwatt.core.energy_curve import EnergyCurve
    from torchwatt.core.report import Window
    from torchwatt.core.terms import Domain
    from torchwatt.reports.report_builder import _window_energies

    t_ns = np.arange(101) * 10_000_000
    curve = EnergyCurve(Domain("gpu", 0), t_ns, t_ns * 100e-9, "counter", "measured")
    early = Window("inner", 200_000_000, 500_000_000, 45.0)  # what it knew when it ended
    assert [w.energy_j for w in _window_energies([early], [curve])] == pytest.approx([30.0])
    assert [w.energy_j for w in _window_energies([early], [])] == [45.0]


def test_two_threads_may_each_have_a_session_and_are_told_not_to_add():
    runs = {}

    def one(name):
        net = nn.Sequential(nn.Linear(8, 8)) if name == "a" else nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        # Threads share one budget: on a loaded machine the first one may spend the head start of both.
        with tw.profile(net, name=name, overhead_budget=0.5) as run:
            work(net, seconds=0.5)
        runs[name] = run

    threads = [threading.Thread(target=one, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs["a"].energy_j is not None
    assert runs["b"].energy_j is not None
    assert "CONCURRENT_SESSION" in set(runs["a"].events.code) | set(runs["b"].events.code)
    assert "1" in set(runs["b"].layers.fqn)
    assert "1" not in set(runs["a"].layers.fqn)


def test_dataloader_workers_inherit_nothing_that_runs():
    data = torch.utils.data.TensorDataset(torch.ones(64, 8))
    loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="fork")
    net = model()
    with tw.profile(net) as run:
        for (x,) in loader:
            net(x)
    assert "(data)" in set(run.layers.fqn)
    assert run.energy_j is not None


def test_a_forked_child_does_nothing_with_its_parents_session():
    with tw.profile() as run:
        work()
        pid = os.fork()
        if pid == 0:
            try:
                work(seconds=0.01)
                patched = nn.Module.__call__.__module__.startswith("torchwatt")
                run.step()
                os._exit(3 if patched else 0)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        work()
    assert run.energy_j is not None


def test_a_session_left_open_is_closed_with_the_program_and_its_files_are_written(tmp_path):
    code = f"""
import json, torch, torchwatt as tw
run = tw.profile(csv={str(tmp_path / "audit")!r}).__enter__()
model = torch.nn.Linear(8, 8)
for _ in range(200): model(torch.ones(4, 8))
print(json.dumps("end of program"))
"""
    run_script(code)
    rows = (tmp_path / "audit" / "run.csv").read_text().splitlines()
    assert "partial" in rows[1]
    assert "still open when the program ended" in (tmp_path / "audit" / "event.csv").read_text()


def test_a_profiled_program_writes_nothing_to_its_streams():
    code = """
import torch, torchwatt as tw
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
with tw.profile(model) as run:
    for _ in range(300): model(torch.ones(4, 8)).sum().backward()
print(run.status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["complete"]
    assert done.stderr == ""


def test_killing_the_sampler_loses_no_run():
    with tw.profile(layers="off") as run:
        work(seconds=0.3)
        os.kill(run._session.feed.sampler_pid, signal.SIGKILL)
        work(seconds=0.3)
    assert run.energy_j is not None
    assert "SAMPLER_THREAD" in set(run.events.code)


def test_options_are_checked_before_anything_starts(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for options, word in (
        ({"layers": "maybe"}, "layers"),
        ({"pue": 0.5}, "pue"),
        ({"overhead_budget": 7}, "overhead_budget"),
        ({"csv": tmp_path / "full" / "file"}, "csv"),
        ({"intensity_g_per_kwh": -1}, "intensity"),
    ):
        with pytest.raises(ConfigError, match=word), tw.profile(**options):
            pytest.fail("the block must not run")
    with pytest.raises(FactorError, match="Give a country"), tw.profile(region="Atlantis"):
        pytest.fail("the block must not run")
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_profile_is_a_decorator_too():
    @tw.profile(name="decorated")
    def train(x, *, y):
        """Train."""
        work()
        return x + y

    assert train(1, y=2) == 3
    assert train.__doc__ == "Train."
    assert train.run.report.name == "decorated"
    assert train.run.energy_j is not None


def test_profile_without_parentheses_says_so():
    with pytest.raises(ConfigError, match="parentheses"):

        @tw.profile
        def train():
            pass


def test_a_running_block_can_be_looked_at():
    with tw.profile() as run:
        work(seconds=0.4)
        assert run.status == "running"
        assert run.energy_j is not None
        assert "running" in repr(run)
    assert run.status == "complete"


def test_explicit_steps_and_units_are_counted():
    with tw.profile() as run:
        for _ in range(5):
            work(seconds=0.05)
            run.step()
            run.count("token", 10)
    assert len(run.steps) == 5
    assert run.energy_per("token") == pytest.approx(run.energy_j / 50)
    assert run.energy_per("step") == pytest.approx(run.energy_j / 5)
    assert 0 < run.steps.energy_j.sum() <= run.energy_j * (1 + 1e-9)
    with pytest.raises(ConfigError, match="image"):
        run.energy_per("image")


def test_a_fault_of_ours_at_the_end_never_takes_the_users_place(monkeypatch):
    def broken(self, done_ns=None):
        raise RuntimeError("our own bug")

    with pytest.warns(RuntimeWarning, match="our own bug"), tw.profile() as run:
        work()
        monkeypatch.setattr("torchwatt.tracing.Tracer.stop", broken)
    monkeypatch.undo()
    run._session.tracer.stop()
    assert run.energy_j is not None
    assert "TRACE_LOST" in set(run.events.code)


def test_no_region_means_no_grams_and_a_sentence_how_to_get_them():
    with tw.profile(layers="off") as run:
        work()
    assert run.carbon_g is None
    assert "region=" in repr(run)


def test_grams_carry_their_source():
    with tw.profile(region="FRA", layers="off") as run:
        work()
    assert run.carbon_g == pytest.approx(run.energy_j / 3.6e6 * run.report.factors[0].value)
    assert run.report.factors[0].source_name
    assert json.dumps(run._repr_mimebundle_()["application/vnd.torchwatt.report.v1+json"])


def test_a_recording_can_be_played_through_the_same_path():
    from torchwatt.sensors import Replay

    with tw.profile(layers="off") as first:
        work(seconds=0.5)
    recording = first._session.feed.stop()
    played_ns = [s.t_ns for s in recording.series if len(s.t_ns)]  # a slow gauge may have none yet
    span_ns = max(t_ns[-1] for t_ns in played_ns) - min(t_ns[0] for t_ns in played_ns)
    with tw.profile(layers="off", feed=Replay(recording), baseline_s=0) as second:
        time.sleep(span_ns / 1e9 + 0.1)  # the recording plays at its own pace
    assert second.report.sampler.mode == "replay"
    # The run begins a moment after the first reading: what lies before it is cut off.
    played = {c.domain: c.total_j for c in attributed(recording)}
    assert {c.domain for c in second.report.curves} == set(played)
    for curve in second.report.curves:
        assert curve.total_j == pytest.approx(played[curve.domain], rel=0.05)


def attributed(recording):
    """Return the curves of everything that was recorded."""
    from torchwatt.attribution.metered_curve import build_metered_curve

    return [
        found.curve for m in recording.meters if m.channel("power") and (found := build_metered_curve(m, recording))
    ]


class Interrupting:
    """Raises KeyboardInterrupt at the n-th look at the counters."""

    def __init__(self, monkeypatch, at):
        from torchwatt.sensors import sampler

        self.looks, self.at, self.look = 0, at, sampler.read_boundaries
        monkeypatch.setattr(sampler, "read_boundaries", self)

    def __call__(self, *args, **kwargs):
        self.looks += 1
        if self.looks == self.at:
            raise KeyboardInterrupt
        return self.look(*args, **kwargs)


def test_an_interrupt_while_a_session_begins_leaves_nothing_on(monkeypatch):
    Interrupting(monkeypatch, 2)  # at the run's first edge, after everything has begun
    with pytest.raises(KeyboardInterrupt), tw.profile():
        pytest.fail("the block must not run")
    with tw.profile() as run:
        work()
    assert run._session._outer is None


def test_an_interrupt_while_a_session_ends_keeps_the_run(monkeypatch):
    Interrupting(monkeypatch, 3)  # at the run's last edge
    with pytest.raises(KeyboardInterrupt), tw.profile() as run:
        work()
    assert run.status == "complete"
    assert run.energy_j > 0
    assert set(run.layers.fqn) >= {"0", "2"}


def test_a_second_interrupt_in_one_step_of_the_end_is_raised_at_once_and_one_in_the_next_step_is_not():
    from torchwatt.session.session_setup import DeferredInterrupt

    def step(interrupts):
        if interrupts:
            raise interrupts.pop()
        return "done"

    late = DeferredInterrupt()
    assert [late.run(partial(step, [KeyboardInterrupt(i)])) for i in range(2)] == ["done", "done"]
    with pytest.raises(KeyboardInterrupt):
        late.raise_it()
    with pytest.raises(KeyboardInterrupt):
        late.run(partial(step, [KeyboardInterrupt(), KeyboardInterrupt()]))


def test_even_if_nothing_can_be_settled_the_users_exception_passes(monkeypatch):
    from torchwatt.session import session

    settled, calls = session.build_report, []

    def failing(*args):
        calls.append(args)
        if len(calls) < 3:
            raise ValueError("ours")
        return settled(*args)

    monkeypatch.setattr(session, "build_report", failing)
    with pytest.warns(RuntimeWarning, match="joules were lost"), pytest.raises(KeyError), tw.profile() as run:
        raise KeyError("mine")
    assert (run.status, run.energy_j) == ("partial", None)
    assert {"ATTRIBUTION_LOST", "SETTLING_LOST"} <= set(run.events.code)


def test_coroutines_and_generators_are_profiled_to_their_end():
    import asyncio

    @tw.profile(layers="off")
    async def coroutine():
        await asyncio.sleep(0.3)
        return 1

    @tw.profile(layers="off")
    def generator():
        time.sleep(0.3)
        yield 2

    assert asyncio.run(coroutine()) == 1
    assert list(generator()) == [2]
    assert coroutine.run.duration_s >= 0.3
    assert generator.run.duration_s >= 0.3
    with pytest.raises(ConfigError, match="async generator"):

        @tw.profile()
        async def both():
            yield 3


def test_tasks_that_take_turns_do_not_nest():
    import asyncio

    async def profiled(seconds):
        with tw.profile(layers="off") as run:
            await asyncio.sleep(seconds)
        return run

    async def both():
        return await asyncio.gather(profiled(0.2), profiled(0.5))

    short, long = asyncio.run(both())
    assert long.status == "complete"
    assert long.report.ledgers[0].coverage > 0.6
    assert all("CONCURRENT_SESSION" in run.events.code.tolist() for run in (short, long))


def test_counts_of_many_threads_are_all_there():
    with tw.profile(layers="off") as run:
        threads = [threading.Thread(target=lambda: [run.count("x") for _ in range(2000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert run.units == {"x": 8000}


@pytest.mark.parametrize("given", [("image", "3"), ("image", None), (3, 1), ("", 1), ("image", float("nan"))])
def test_a_count_that_is_none_is_named(given):
    with tw.profile(layers="off", baseline_s=0) as run, pytest.raises(ConfigError, match="count"):
        run.count(*given)


def test_files_that_could_not_be_written_are_refused_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    for target in ({"csv": tmp_path / "file"}, {"csv": tmp_path / "file" / "x"}, {"html": tmp_path / "file" / "x"}):
        with pytest.raises(ConfigError, match=r"is a file|could not be written"), tw.profile(**target):
            pytest.fail("the block must not run")
    with tw.profile(html=tmp_path / "new" / "report.html", layers="off"):
        pass
    assert (tmp_path / "new" / "report.html").is_file()


def test_a_step_that_a_meter_did_not_see_to_its_end_has_no_joules():
    from dataclasses import replace

    from torchwatt.core.energy_curve import EnergyCurve
    from torchwatt.core.terms import Domain
    from torchwatt.core.trace import EMPTY_TRACE
    from torchwatt.reports.report_builder import _step_energies

    t_ns = np.arange(301) * 10_000_000
    curve = EnergyCurve(Domain("gpu", 0), t_ns, t_ns * 100e-9, "counter", "measured")
    steps = list(_step_energies(replace(EMPTY_TRACE, steps=((0, 2 * 10**9), (2 * 10**9, 6 * 10**9))), [curve]))
    assert steps[0].energy_j == {"gpu:0": pytest.approx(200.0)}
    assert steps[1].energy_j == {}


def test_a_meter_without_a_band_leaves_the_total_without_an_interval():
    from dataclasses import replace

    from tests.support.reports import sample_report

    report = sample_report()
    assert report.systematic_j is not None
    unknown = tuple(replace(meter, accuracy_rel=None) for meter in report.meters)
    assert replace(report, meters=unknown).systematic_j is None


def test_a_torch_that_cannot_be_traced_is_metered_without_layers(monkeypatch):
    from torchwatt.tracing import Tracer

    def fail(_self, _marks):
        raise AttributeError("torch has no such thing")

    monkeypatch.setattr(Tracer, "start", fail)
    with pytest.warns(RuntimeWarning, match="modules are not traced: AttributeError"), tw.profile(baseline_s=0) as run:
        run.step()
        ran = True
    assert ran
    assert run.energy_j is not None
    assert "TRACE_LOST" in set(run.events.code)
    str(run)
