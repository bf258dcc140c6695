from functools import cache

import numpy as np
import pytest
import torch
from modelfix_core import Split, Task
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other


@cache
def _digits():
    """The 1,797 digits of scikit-learn, 8x8 with 17 grey values, in a fixed random order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.images[order] / 16).astype(np.float32)[:, None]
    return Split(x, data.target[order].astype(np.int64))


def _layers(kind):
    if kind == "dense":
        hidden = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
        return [nn.Flatten(), *hidden]
    conv = [
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    ]
    return [*conv, nn.Linear(54, 10)]


@cache
def _classifier(kind, epochs, seed):
    """A classifier of digits, trained on the first 700 with Adam 1e-3."""
    from modelfix_core.torch import export

    train = _digits().select(slice(0, 700))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(*_layers(kind))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        x, y = torch.from_numpy(train.images()), torch.from_numpy(train.y)
        for _ in range(epochs):
            for part in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[part]), y[part]).backward()
                optimizer.step()
    return export(net.eval(), (1, 8, 8))


@pytest.fixture
def digits():
    return _digits()


@pytest.fixture
def digits_task():
    """Make a task on digits: 700 for training, 300 for validation, an under-trained model."""

    def make(kind="dense", epochs=6, seed=0, **changes):
        data = _digits()
        fields = {
            "model": _classifier(kind, epochs, seed),
            "train": data.select(slice(0, 700)),
            "validation": data.select(slice(700, 1000)),
            "repair": data.select(slice(1000, 1200)),
            "seed": seed,
        }
        return Task(**fields | changes)

    return make
