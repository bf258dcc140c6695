from functools import cache

import numpy as np
import pytest
import torch
from modelfix_core import Split, Task
from modelfix_testing import tiny_task
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other


@cache
def _digits():
    """The 1,797 digits of scikit-learn at 32x32 as uint8, in a fixed random order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    small = torch.from_numpy(data.images[order][:, None] * (255 / 16))
    large = functional.interpolate(small, (32, 32), mode="bilinear")
    return Split(large.round().to(torch.uint8).numpy(), data.target[order].astype(np.int64))


def fogged(split):
    """Return the images of a split behind fog."""
    return Split(0.35 * split.images() + np.float32(0.55), split.y)


@cache
def _classifier(seed):
    """A small convolutional classifier of digits, trained on the first 1,000."""
    from modelfix_core.torch import export

    train = _digits().select(slice(0, 1000))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(784, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        x, y = torch.from_numpy(train.images()), torch.from_numpy(train.y)
        for _ in range(12):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(net(x[part]), y[part]).backward()
                optimizer.step()
    return export(net.eval(), (1, 32, 32))


@pytest.fixture
def foggy():
    """A task whose repair split is fogged, with a disjoint fogged and a clean test."""

    def make(seed=0, **changes):
        data = _digits()
        fields = {
            "model": _classifier(seed),
            "train": data.select(slice(0, 1000)),
            "validation": data.select(slice(1000, 1200)),
            "repair": fogged(data.select(slice(1200, 1500))),
            "seed": seed,
        }
        clean = data.select(slice(1500, None))
        return Task(**fields | changes), fogged(clean), clean

    return make


@pytest.fixture
def small_task():
    """The tiny subject with fewer training images."""

    def make(**changes):
        task = tiny_task(**changes)
        task.train = task.train.select(slice(0, 200))
        return task

    return make


@pytest.fixture
def pictures():
    """Smooth random images, float32 [N, C, H, W] with values around the middle of [0, 1]."""

    def make(n, shape=(3, 32, 32), seed=0):
        rng = torch.Generator().manual_seed(seed)
        coarse = torch.rand(n, shape[0], 5, 5, generator=rng)
        return 0.25 + 0.5 * functional.interpolate(coarse, shape[1:], mode="bilinear")

    return make


class Oracle:
    """A black box: it is wrong for exactly the given positions, and has nothing else."""

    def __init__(self, failing):
        self.failing = failing

    def predict(self, x):
        wrong = np.isin(np.arange(len(x)), self.failing)
        return np.eye(10, dtype=np.float32)[(x.y + wrong) % 10]

    def __getattr__(self, name):
        raise AssertionError(f"a black box has no {name}")


@pytest.fixture
def oracle():
    return Oracle
