"""Stages that the program names, against its own clock and counters."""

from collections import Counter, defaultdict
from math import fsum
from time import thread_time

import pytest
import torch
from torch import nn

import torchwatt as tw
from torchwatt.core.errors import ConfigError

POINTS = 6.0  # percentage points of the whole


class Clock:
    """Seconds of CPU time by part, as the program itself reads them."""

    def __init__(self):
        self.seconds, self.calls = defaultdict(float), Counter()
        self.restart()

    def restart(self):
        self.since = thread_time()

    def ends(self, part):
        now = thread_time()
        self.seconds[part] += now - self.since
        self.since = now


def model(width=128, depth=4):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return nn.Sequential(*(each for _ in range(depth) for each in (nn.Linear(width, width), nn.ReLU())))


def of_cpu(run):
    rows = run.layers
    return rows[(rows.domain == "cpu") & (rows.fqn != "(profiler)")]


def differences(run, clock):
    """Return how many points of the joules each stage has more than of the seconds."""
    joules = of_cpu(run).groupby("stage").energy_self_j.sum()
    total_s, total_j = sum(clock.seconds.values()), joules.sum()
    return {each: 100 * (joules.get(each, 0.0) / total_j - s / total_s) for each, s in clock.seconds.items()}


def generate(requests, tokens, *, each_token):
    """Read a long and many short inputs, with a stage for all of these or for each."""
    net, clock = model().eval(), Clock()
    with torch.no_grad(), tw.profile(net) as run:
        clock.restart()
        for _ in range(requests):
            with tw.stage("prefill"):
                net(torch.randn(256, 128))
            clock.ends("prefill")
            clock.calls["prefill"] += 1
            if each_token:
                for _ in range(tokens):
                    with tw.stage("decode"):
                        net(torch.randn(16, 128))
                    clock.ends("decode")
                    torch.randn(4_000).sort()
                    clock.ends("")
            else:
                with tw.stage("decode"):
                    for _ in range(tokens):
                        net(torch.randn(16, 128))
                clock.ends("decode")
            clock.calls["decode"] += tokens
        clock.ends("")
    return run, clock


@pytest.mark.alone
@pytest.mark.parametrize("each_token", [False, True])
def test_each_stage_has_its_joules_steps_and_calls(each_token):
    run, clock = generate(120, 40, each_token=each_token)
    for stage, points in differences(run, clock).items():
        assert points == pytest.approx(0.0, abs=POINTS), stage
    steps = run.steps.groupby("stage").steps.sum()
    assert dict(steps) == clock.calls
    linear = of_cpu(run)[(of_cpu(run).fqn == "0") & (of_cpu(run).phase == "forward")]
    assert dict(zip(linear.stage, linear.calls, strict=True)) == clock.calls


def test_a_rare_stage_is_filled_in_from_its_own_calls():
    """The long inputs spend a larger part in the matrix products than the short ones."""
    run, _ = generate(150, 40, each_token=False)
    rows = of_cpu(run)
    rows = rows[rows.phase == "forward"]

    def share(stage):
        mine = rows[rows.stage == stage]
        return mine[mine.fqn.isin(["0", "2", "4", "6"])].energy_self_j.sum() / mine.energy_self_j.sum()

    assert share("prefill") > share("decode") + 0.1


@pytest.mark.alone
def test_training_and_validation_by_name_with_steps_in_which_stages_change():
    net, clock = model(), Clock()
    optimizer = torch.optim.AdamW(net.parameters())
    with tw.profile(net) as run:
        clock.restart()
        for _ in range(6):
            with tw.stage("fit"):
                for _ in range(60):
                    optimizer.zero_grad()
                    loss = net(torch.randn(64, 128)).square().mean()
                    loss.backward()
                    clock.ends("fit")
                    with tw.stage("update"):
                        optimizer.step()
                    clock.ends("update")
                    clock.calls["update"] += 1
            with tw.stage("check"), torch.no_grad():
                for _ in range(20):
                    net(torch.randn(64, 128))
                    clock.calls["check"] += 1
            clock.ends("check")
        clock.ends("")
    for stage, points in differences(run, clock).items():
        assert points == pytest.approx(0.0, abs=POINTS), stage
    assert dict(run.steps.groupby("stage").steps.sum()) == clock.calls
    optimizer_rows = of_cpu(run)[of_cpu(run).fqn == "(optimizer)"]
    assert set(optimizer_rows.stage) == {"update"}


def test_the_innermost_stage_counts_and_all_stages_add_up():
    net = model()
    with torch.no_grad(), tw.profile(net) as run, tw.stage("outer"):
        for _ in range(30):
            net(torch.randn(8, 128))
            with tw.stage("inner"):
                net(torch.randn(64, 128))
    rows = run.layers
    calls = rows[(rows.domain == "cpu") & (rows.fqn == "0")].set_index("stage").calls
    assert dict(calls) == {"outer": 30, "inner": 30}
    metered_j = {str(ledger.domain): ledger.energy_j for ledger in run.report.counted}
    for domain, mine in rows.groupby("domain"):
        assert fsum(mine.energy_self_j) == pytest.approx(metered_j[domain], rel=1e-9)
        assert set(mine.stage) >= {"outer", "inner"}, domain
    assert fsum(rows.energy_self_j) == pytest.approx(run.energy_j, rel=1e-9)


def test_a_stage_inside_a_modules_call_is_told_and_changes_nothing():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x):
            with tw.stage("inside"):
                return self.inner(x)

    net = Named()
    with torch.no_grad(), tw.profile(net) as run:
        for _ in range(20):
            net(torch.randn(4, 16))
    assert set(run.layers.stage) == {""}
    assert "STAGE_INSIDE_CALL" in set(run.events.code)


def test_stages_decorate_functions_and_leave_exceptions_alone():
    net = model()

    @tw.stage("decorated")
    def answer(x):
        return net(x)

    with torch.no_grad(), tw.profile(net) as run:
        for _ in range(10):
            answer(torch.randn(4, 128))
        with pytest.raises(ZeroDivisionError), tw.stage("failing"):
            1 / 0  # noqa: B018
        net(torch.randn(4, 128))
    rows = run.layers[run.layers.fqn == "0"]
    assert set(rows.stage) == {"decorated", ""}
    assert answer(torch.randn(4, 128)).shape == (4, 128)  # without a session


def test_a_scope_keeps_its_time_in_a_stage():
    net = model()
    with torch.no_grad(), tw.profile(net) as run, tw.scope("load"):
        for _ in range(3):
            with tw.stage("read"):
                for _ in range(30):
                    torch.randn(100_000).sort()
        net(torch.randn(4, 128))
    rows = run.layers[(run.layers.domain == "cpu") & (run.layers.fqn == "load")].set_index("stage")
    assert rows.energy_self_j["read"] > 0.5 * run.layers[run.layers.domain == "cpu"].energy_self_j.sum()
    assert (rows.calls[""], rows.calls["read"]) == (1, 0)


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_stage_needs_a_name(name):
    with pytest.raises(ConfigError, match="stage"):
        tw.stage(name)
