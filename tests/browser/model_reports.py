"""Reports of real models, saved in a notebook as its outputs: what the page shows of them needs no kernel."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import nbformat
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import torchwatt
from tests.browser.small_gpt import Gpt
from torchwatt.core.meter import Event, Unavailable
from torchwatt.core.report import Report
from torchwatt.views.report_payload import MIME, to_payload


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Residual(16, 16, 1), Residual(16, 16, 1))
        self.layer2 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32, 1))
        self.layer3 = nn.Sequential(Residual(32, 64, 2), Residual(64, 64, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@cache
def model_report(name: str) -> Report:
    """Return the report of a few training steps of `gpt-8`, `gpt-48` or `resnet`, `slow data`, or `eventful`."""
    if name == SLOW_DATA:
        return slow_data_report()
    if name == EVENTFUL:
        return eventful_report()
    kind, _, blocks = name.partition("-")
    model = Gpt(int(blocks)) if kind == "gpt" else ResNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torchwatt.profile(model, region="FRA", name=name) as run:
        for _ in range(6):
            optimizer.zero_grad()
            batch = torch.randint(64, (4, 16)) if kind == "gpt" else torch.randn(4, 3, 32, 32)
            model(batch).square().mean().backward()
            optimizer.step()
    return run.report


SLOW_DATA = "slow data"


EVENTFUL = "eventful"
LONG_WORD = "/sys/devices/virtual/powercap/intel-rapl:0/intel-rapl:0:0/energy_uj." * 3


def eventful_report() -> Report:
    """Return a report whose events, missing meters and versions have words that are wider than a phone."""
    report = model_report("gpt-8")
    subjects = ("run", "gpu:0/power_fine", ".".join(["blocks.11.attention.projection"] * 4))
    events = tuple(
        Event(
            report.start_ns + 10_000_000 * n, severity, "CALIBRATION_UNREADABLE", subject, f"read 12.5 J of {LONG_WORD}"
        )
        for n, (severity, subject) in enumerate(product(("info", "warning", "error"), subjects))
    )
    gone = Unavailable("dram:0", f"{LONG_WORD} does not exist", f"setfacl -m u:$USER:r {LONG_WORD}")
    software = {**report.software, "torch": f"2.13.0+{'a1b2c3d4' * 8}"}
    return replace(report, name=EVENTFUL, events=events, unavailable=(*report.unavailable, gone), software=software)


class SlowImages(Dataset):
    """Images that take longer to load than to learn from."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.1)
        return torch.randn(3, 32, 32)


def slow_data_report() -> Report:
    """Return the report of a training that waits for its data most of the time."""
    model = ResNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torchwatt.profile(model, region="FRA", name=SLOW_DATA) as run:
        for batch in DataLoader(SlowImages(), batch_size=2):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return run.report


def write_reports(path: Path, *reports: Report) -> None:
    """Write a notebook that has run: one cell a report."""
    cells = [
        nbformat.v4.new_code_cell(
            f"%%energy --name {report.name}\ntrain()",
            outputs=[nbformat.v4.new_output("display_data", {MIME: to_payload(report), "text/plain": report.name})],
        )
        for report in reports
    ]
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
