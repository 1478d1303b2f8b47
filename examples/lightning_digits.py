"""What did each epoch use? Real digits in Lightning's Trainer, CPU only, seconds.

python examples/lightning_digits.py [--region FRA] [--energy-budget-j 50] [--epochs 5] [--csv DIR]
"""

import argparse

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from torchwatt.integrations.lightning import EnergyCallback

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--region")
parser.add_argument("--energy-budget-j", type=float)
parser.add_argument("--csv")
asked = parser.parse_args()


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 24, 3, padding=1)
        self.head = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 16, 10))

    def forward(self, images):
        return self.head(self.conv(images))

    def training_step(self, batch, _):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


pl.seed_everything(0, verbose=False)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
train, test = random_split(TensorDataset(images, torch.tensor(digits.target)), [1400, 397])

energy = EnergyCallback(region=asked.region, energy_budget_j=asked.energy_budget_j, csv=asked.csv)
trainer = pl.Trainer(
    max_epochs=asked.epochs,
    accelerator="cpu",
    callbacks=[energy],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Digits(), DataLoader(train, batch_size=50, shuffle=True), DataLoader(test, batch_size=200))

print(energy.run)
print(energy.run.epochs.round(3).to_string(index=False))
print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})
