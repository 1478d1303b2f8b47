"""`torchwatt demo`: trains a small CNN on handwritten digits and prints its energy report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torchwatt.core.errors import ConfigError, install_command
from torchwatt.core.plain_text import escape_unprintable
from torchwatt.session import Run, profile, scope

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH = 64


def run_demo(
    *, epochs: int, options: dict[str, Any], out: IO[str], written: Callable[[Sequence[Path]], None] = lambda _: None
) -> int:
    """Train, print the report and the test accuracy; return 1 if the accuracy is 95 % or less, else 0.

    Raises:
        ConfigError: scikit-learn, which contains the digits, is not installed.
    """
    import torch

    torch.manual_seed(0)
    train, test = load_digit_sets()
    model = build_cnn()
    with profile(model, name="digits demo", **options) as run:
        train_model(model, train, epochs, run)
    right = test_accuracy(model, test)
    print(run, file=out)
    print(f"\nTest accuracy on {len(test)} unseen digits: {right:.1%}", file=out)
    for path in run.files:
        print(escape_unprintable(f"Written: {path}"), file=out)
    written(run.files)
    return 0 if right > 0.95 else 1


def load_digit_sets() -> tuple[torch.utils.data.TensorDataset, torch.utils.data.TensorDataset]:
    """Return scikit-learn's 1,797 bundled 8 x 8 digits (UCI, 1998) as training and test sets.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    import torch
    from torch.utils.data import TensorDataset

    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigError(f"the digits come with scikit-learn: {install_command('sklearn')}") from error
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(data.target)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    return TensorDataset(x_train, y_train), TensorDataset(x_test, y_test)


def build_cnn() -> nn.Module:
    """Return a small CNN whose layers differ much in cost."""
    from collections import OrderedDict

    from torch import nn

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3, padding=1),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
            conv3=nn.Conv2d(64, 64, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * 16, 128),
            relu4=nn.ReLU(),
            fc2=nn.Linear(128, 10),
        )
    )


def train_model(model: nn.Module, data: torch.utils.data.TensorDataset, epochs: int, run: Run) -> None:
    """Train for some epochs; the loss is marked with `scope`, and images are counted."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            scores = model(x)
            with scope("loss"):
                loss = cross_entropy(scores, y)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            run.count("image", len(x))


def test_accuracy(model: nn.Module, data: torch.utils.data.TensorDataset) -> float:
    """Return the fraction of correct predictions."""
    import torch

    x, y = data.tensors
    with torch.inference_mode():
        return float((model(x).argmax(1) == y).float().mean())
