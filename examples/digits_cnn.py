"""Which layer of a small CNN uses the joules? Real digits, CPU only, half a minute.

python examples/digits_cnn.py [--epochs N] [--csv DIR] [--html FILE] [--region FRA]
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import torchwatt as tw

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--region")
parser.add_argument("--csv")
parser.add_argument("--html")
asked = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
y = torch.tensor(digits.target)
order = torch.randperm(len(x))
train, test = order[:1400], order[1400:]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)  # one module, called twice
        self.head = nn.Linear(48 * 16, 10)

    def forward(self, images):
        features = self.relu(self.conv2(self.relu(self.conv1(images))))
        return self.head(nn.functional.max_pool2d(features, 2).flatten(1))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
loader = DataLoader(TensorDataset(x[train], y[train]), batch_size=50, shuffle=True)

with tw.profile(net, region=asked.region, csv=asked.csv, html=asked.html) as run:
    for _ in range(asked.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            scores = net(images)
            with tw.scope("loss"):
                loss = cross_entropy(scores, labels)
            loss.backward()
            optimizer.step()
            run.count("image", len(images))

print(run)
with torch.inference_mode():
    accuracy = (net(x[test]).argmax(1) == y[test]).float().mean().item()
print(f"accuracy {accuracy:.3f}")
assert accuracy > 0.95
