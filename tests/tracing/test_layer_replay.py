import torch
from torch import nn

from torchwatt.core.terms import Slot
from torchwatt.tracing.layer_replay import work_of


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
