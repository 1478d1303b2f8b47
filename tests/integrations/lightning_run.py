"""What the tests of Lightning's callback train: a file of its own, since importing Lightning takes seconds."""

import lightning.pytorch as pl
import torch
from torch import nn

from tests.integrations.world import Busy
from torchwatt.integrations.lightning import EnergyCallback

__all__ = ["EnergyCallback", "Model"]


class Model(pl.LightningModule):
    def __init__(self, world, seconds=0.015):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        self.busy = Busy(world, seconds)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.busy(self.net(batch[0])), batch[1])

    def validation_step(self, batch, _):
        self.log("val", nn.functional.cross_entropy(self.busy(self.net(batch[0])), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
