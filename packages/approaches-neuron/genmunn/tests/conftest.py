from dataclasses import dataclass

import numpy as np
import pytest
import torch
from modelfix_core.approach import Task
from modelfix_core.dataset import Split
from modelfix_core.model import Model
from modelfix_core.torch import load
from modelfix_testing import mlp
from sklearn.datasets import load_digits
from torch import nn


@dataclass(frozen=True)
class Digits:
    """A 64-64-64-10 network on scikit-learn's digits with its splits."""

    model: Model
    train: Split
    validation: Split
    repair: Split

    @property
    def net(self):
        return load(self.model)

    def right(self, model=None, split=None):
        split = split or self.train
        return (model or self.model).predict(split).argmax(axis=1) == split.y

    def task(self, **changes):
        splits = {"train": self.train, "validation": self.validation, "repair": self.repair}
        return Task(**{"model": self.model, **splits, **changes})


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # Threads only wait for each other on networks this small.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(one_thread):
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = (pixels[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels[order].astype(np.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)]
    module = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    inputs, targets = torch.from_numpy(x[:900]), torch.from_numpy(y[:900])
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    shuffle = np.random.default_rng(0)
    for _ in range(23):
        for batch in torch.from_numpy(shuffle.permutation(900)).split(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(inputs[batch]), targets[batch]).backward()
            optimiser.step()
    weights = [layer.weight.detach().numpy() for layer in layers]
    biases = [layer.bias.detach().numpy() for layer in layers]
    model = mlp(weights, biases, (1, 8, 8))
    parts = [Split(x[a:b], y[a:b]) for a, b in ((0, 900), (900, 1400), (1400, None))]
    return Digits(model, *parts)
