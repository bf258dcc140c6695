from dataclasses import dataclass

import numpy as np
import pytest
import torch
from modelfix_core.dataset import Split
from modelfix_i_repair.repair import Samples
from modelfix_i_repair.sets import draw_sets
from sklearn.datasets import load_digits
from torch import nn


@dataclass(frozen=True)
class Digits:
    """A 64-64-64-10 network on scikit-learn's digits with its splits."""

    module: nn.Sequential
    repair: Split
    validation: Split

    def samples(self, index):
        return Samples(
            torch.from_numpy(self.repair.images(index)), torch.from_numpy(self.repair.y[index])
        )

    def sets(self, per_class=4, most=None, seed=0):
        with torch.no_grad():
            logits = self.module(torch.from_numpy(self.repair.images())).numpy()
        drawn = draw_sets(logits, self.repair.y, per_class, most, seed)
        return self.samples(drawn.general), self.samples(drawn.specific)

    def accuracy(self, module):
        with torch.no_grad():
            logits = module(torch.from_numpy(self.validation.images())).numpy()
        return float(np.mean(logits.argmax(axis=1) == self.validation.y))


def mlp():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


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
        module = mlp()
    train_x, train_y = torch.from_numpy(x[:500]), torch.from_numpy(y[:500])
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(train_x), train_y).backward()
        optimiser.step()
    parts = [Split(x[a:b], y[a:b]) for a, b in ((500, 1100), (1100, None))]
    return Digits(module.eval(), *parts)
