import pytest
import torch
from torch import nn
from torch.utils.benchmark import Timer

import torchwatt as tw
from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import Slot
from torchwatt.offline.layer_replay import work_of


def test_a_linear_layers_operations_and_bytes_are_those_by_hand():
    model = nn.Sequential(nn.Linear(32, 64, bias=False))
    found = work_of(model, lambda: model(torch.ones(16, 32)))
    operations, moved = found[Slot("0", "forward")]
    assert operations == 2 * 16 * 32 * 64
    assert moved == 4 * (16 * 32 + 32 * 64 + 16 * 64)
    assert found[Slot("0", "backward")][0] == 2 * operations  # for the input and for the weight


def test_layers_without_products_move_bytes_only():
    model = nn.Sequential(nn.ReLU())
    found = work_of(model, lambda: model(torch.ones(16, 32, requires_grad=True)))
    assert found[Slot("0", "forward")] == (0.0, 4 * 2 * 16 * 32)
    assert found[Slot("0", "backward")][0] == 0.0
    assert found[Slot("0", "backward")][1] > 0


def test_layers_that_do_the_same_share_what_was_counted():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    found = work_of(model, lambda: model(torch.ones(2, 8)))
    assert found[Slot("0", "forward")] == found[Slot("1", "forward")]


def test_the_ceiling_is_that_of_torch_s_own_products_and_layers_reach_a_part_of_it() -> None:
    ceiling = tw.measure_flop_ceiling("cpu", seconds=1.0)
    threads = torch.get_num_threads()
    assert (ceiling.device, ceiling.dtype, ceiling.threads) == ("cpu", "float32", threads)
    x = torch.rand(ceiling.width, ceiling.width)
    plain_s = min(Timer("x @ x", globals={"x": x}, num_threads=threads).timeit(1).mean for _ in range(8))
    assert 0.25 < ceiling.flops_per_s * plain_s / (2 * ceiling.width**3) < 4.0  # tests run beside it
    net = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 8).bfloat16())
    with tw.profile(net, overhead_budget=1.0, live="off") as run:
        for _ in range(30):
            net[0](torch.rand(256, 512))
            net[1](torch.rand(16, 512).bfloat16())
    rows = run.flop_utilisation(ceiling)
    assert set(rows.fqn) == {"0"}  # the other is of another type
    first = rows.iloc[0]
    assert first.flops == pytest.approx(30 * 2 * 256 * 512 * 512)
    assert first.flops_per_s == pytest.approx(first.flops / first.time_self_s)
    assert 0.0 < first.flop_utilisation < 2.0
    assert set(run.flop_utilisation(ceiling, autocast=True).fqn) == {"0", "1"}


def test_a_ceiling_that_cannot_be_measured_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"torch\.int8 could be measured on nowhere"):
        tw.measure_flop_ceiling("nowhere", torch.int8)
    with pytest.raises(ConfigError, match="must be positive"):
        tw.measure_flop_ceiling("cpu", seconds=0)
