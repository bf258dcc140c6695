import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from modelfix_core.approach import Task
from modelfix_core.dataset import Split
from modelfix_core.model import Model
from modelfix_core.torch import PrefixCache, export, load
from modelfix_inner.blocks import find_blocks
from modelfix_inner.probes import make_probe, train_probes
from modelfix_inner.samples import Samples, misclassified, take
from sklearn.datasets import load_digits
from torch import nn


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # Threads only wait for each other on networks this small.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 32),
        nn.ReLU(),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    )


class Residual(nn.Module):
    """Two residual stages with BatchNorm; the second halves height and width."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 3, 2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 12, 1, 2, bias=False)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.bn1(self.conv1(x))).relu()
        x = (self.conv2(self.bn2(self.down(x)).relu()) + self.shortcut(x)).relu()
        return self.fc(x.mean(dim=(2, 3)))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@dataclass(frozen=True)
class Digits:
    """A network trained for a moment on scikit-learn's digits, with its splits."""

    model: Model
    train: Split
    validation: Split
    repair: Split

    def task(self, **changes):
        fields = {
            "model": self.model,
            "train": self.train,
            "validation": self.validation,
            "repair": self.repair,
        }
        return Task(**(fields | changes))


def trained(make, steps):
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = (pixels[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels[order].astype(np.int64)
    module = seeded(make)
    images, targets = torch.from_numpy(x[:300]), torch.from_numpy(y[:300])
    optimiser = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(images), targets).backward()
        optimiser.step()
    parts = ((0, 900), (900, 1350), (1350, None))
    splits = [Split(x[a:b], y[a:b], ids=np.arange(len(y))[a:b]) for a, b in parts]
    return Digits(export(module.eval(), (1, 8, 8)), *splits)


@pytest.fixture(scope="session")
def digits(one_thread):
    return trained(small_cnn, 150)


@pytest.fixture(scope="session")
def residual(one_thread):
    return trained(Residual, 80)


@dataclass(frozen=True)
class Probed:
    """A network with its blocks and a trained probe for each."""

    net: nn.Module
    blocks: list
    probes: list
    accuracies: list
    clean: Samples
    faulty: Samples


def probed(digits):
    net = load(digits.model)
    blocks = find_blocks(digits.model)
    clean = take(digits.train, np.arange(600), "cpu")
    taps = [block.tap for block in blocks]
    shapes = [value.shape[1:] for value in net.activations(clean.x[:1], taps).values()]
    probes = seeded(lambda: [make_probe(s, 10, depth < 2) for depth, s in enumerate(shapes)])
    accuracies = train_probes(
        probes,
        PrefixCache(net, taps, clean.x),
        clean.y,
        np.random.default_rng(0),
        epochs=30,
        learning_rate=0.01,
        batch_size=128,
    )
    wrong = misclassified(net, digits.train, np.arange(len(digits.train)), 50)
    return Probed(net, blocks, probes, accuracies, clean, take(digits.train, wrong, "cpu"))


@pytest.fixture(scope="session")
def parts(digits):
    """Network, blocks and probes of the digits; shared, never to be changed."""
    return probed(digits)


@pytest.fixture(scope="session")
def residual_parts(residual):
    """The same of the residual network."""
    return probed(residual)


@pytest.fixture
def fresh(parts):
    """A copy of `parts`, to be changed."""
    return copy.deepcopy(parts)
