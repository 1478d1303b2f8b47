import pytest
import torch
from torch import nn

import torchwatt as tw
from torchwatt.core.errors import ConfigError
from torchwatt.tracing.user_process import StepJitter


def train(steps):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()


def test_steps_are_shaken_when_asked_and_the_report_says_so():
    with tw.profile(dither_s=0.002) as run:
        train(20)
    told = run.events.set_index("code").message["DITHERED"]
    assert told.startswith("20 steps were shaken by ")
    with tw.profile() as plain:
        train(20)
    assert "DITHERED" not in plain.events.code.tolist()


def test_nothing_shakes_after_the_end():
    dither = StepJitter(0.001, seed=1)
    dither.start()
    train(3)
    dither.stop()
    train(3)
    assert dither.steps == 3
    assert 0 < dither.slept_s < 0.003


def test_an_impossible_shake_is_named():
    with pytest.raises(ConfigError, match="dither_s"), tw.profile(dither_s=1.0):
        pytest.fail("the block must not run")
