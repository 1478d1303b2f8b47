"""The user's scopes within short steps, against the program's own clock and counters."""

from collections import Counter, defaultdict
from statistics import median
from time import thread_time

import pytest
import torch
from torch import nn

import torchwatt as tw

POINTS = 6.0  # percentage points of the whole


def run_program(steps=400):
    """Train in short steps with a scope in each, one in every tenth, and one around an evaluation; return the truth."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(*(each for _ in range(4) for each in (nn.Linear(192, 192), nn.ReLU())))
    optimizer = torch.optim.AdamW(model.parameters())
    x, big = torch.randn(64, 192), torch.randn(192, 192)
    seconds, calls, since = defaultdict(float), Counter(), thread_time()

    def ends(part):
        nonlocal since
        now = thread_time()
        seconds[part] += now - since
        since = now

    with tw.profile(model) as run:
        since = thread_time()
        for i in range(steps):
            optimizer.zero_grad()
            ends("other")
            with tw.scope("features"):
                inputs = torch.sin(x).exp() @ big
                ends("features")
                y = model(inputs)
                ends("forward")
            calls["features"] += 1
            loss = y.square().mean()
            ends("other")
            loss.backward()
            ends("backward")
            with tw.scope("update"):  # it ends after the step that it is part of
                optimizer.step()
            ends("optimizer")
            calls["update"] += 1
            if i % 10 == 9:
                with tw.scope("report"):
                    for _ in range(12):
                        big @ big
                ends("report")
                calls["report"] += 1
            if i % 50 == 49:
                with tw.scope("evaluation"), torch.no_grad():
                    for _ in range(10):
                        model(x)
                        ends("forward")
                calls["evaluation"] += 1
    ends("other")
    return run.layers, seconds, calls


def shares(rows, seconds):
    rows = rows[(rows.domain == "cpu") & (rows.fqn != "(profiler)")]
    joules = defaultdict(float)
    for row in rows.itertuples():
        named = row.fqn if row.fqn in {"features", "report"} and row.phase == "other" else row.phase
        joules[named] += row.energy_self_j
    total_j, total_s = sum(joules.values()), sum(seconds.values())
    parts = {"features", "report", "forward", "backward", "optimizer"}
    return {part: 100 * (joules[part] / total_j - seconds[part] / total_s) for part in parts}


@pytest.mark.alone
def test_scopes_in_short_steps_get_their_own_time_and_leave_the_modules_theirs():
    found = [(shares(rows, seconds), rows, calls) for rows, seconds, calls in (run_program() for _ in range(3))]
    for part in found[0][0]:
        assert median(each[part] for each, *_ in found) == pytest.approx(0.0, abs=POINTS), part
    for _, rows, calls in found:
        own = rows[(rows.domain == "cpu") & (rows.phase == "other") & rows.fqn.isin(list(calls))].dropna(subset="calls")
        assert dict(zip(own.fqn, own.calls, strict=True)) == {name: calls[name] for name in own.fqn}
        assert {"features", "report"} <= set(own.fqn)
