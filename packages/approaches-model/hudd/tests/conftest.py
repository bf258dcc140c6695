from functools import cache

import numpy as np
import pytest
import torch
from modelfix_core import Split, Task
from modelfix_core.torch import export, load
from modelfix_hudd.heatmaps import Heatmaps
from modelfix_hudd.places import outline
from modelfix_testing import mlp
from torch import nn

torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other


def layers_of(bias, activation=nn.ReLU):
    """Two convolutions and three dense layers, as the study's LeNet5."""
    return [
        nn.Conv2d(1, 6, 5, bias=bias),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, bias=bias),
        activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 40, bias=bias),
        activation(),
        nn.Dropout(0.3),
        nn.Linear(40, 20, bias=bias),
        activation(),
        nn.Linear(20, 10, bias=bias),
    ]


@cache
def _model(bias, activation):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return export(nn.Sequential(*layers_of(bias, activation)).eval(), (1, 24, 24))


@pytest.fixture
def model_of():
    """A LeNet5-like model: with or without biases, of any activation."""
    return lambda bias=True, activation=nn.ReLU: _model(bias, activation)


@pytest.fixture
def network_of():
    """The plain PyTorch network of such a model."""

    def rebuild(model, bias=True, activation=nn.ReLU):
        net = nn.Sequential(*layers_of(bias, activation)).eval()
        net.load_state_dict({k: torch.tensor(np.array(v)) for k, v in model.weights.items()})
        return net

    return rebuild


@pytest.fixture
def heatmaps_of():
    """Heatmaps of images at all places of a model, by layer."""

    def compute(model, x, most=16, eps=1e-9):
        found = outline(model, most)
        return Heatmaps(load(model), found, eps)(torch.as_tensor(x), found.places)

    return compute


@pytest.fixture
def images():
    def make(n, shape=(1, 24, 24), seed=0):
        return np.random.default_rng(seed).random((n, *shape), dtype=np.float32)

    return make


class Planted:
    """Images of class 0 that fail for one of two patches, and a model made by hand.

    Hidden units read the upper left patch, the lower right patch and a middle row. The patches
    speak for class 1, the row for class 0; the images of class 1 have both patches.
    """

    def __init__(self, failures=24, right=60, seed=0):
        rng = np.random.default_rng(seed)
        read = np.zeros((3, 8, 8), np.float32)
        read[0, :3, :3] = read[1, 5:, 5:] = read[2, 4] = 1
        mix = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.2, 0.2]])
        decide = np.float32([[0, 0, 1, 0.1], [1, 1, 0, 0.1]])
        weights = [read.reshape(3, 64), mix, decide]
        self.model = mlp(weights, [np.zeros(len(w), np.float32) for w in weights], (1, 8, 8))
        self.patch = np.repeat([0, 1], failures)

        def draw(patches, middle):
            x = rng.uniform(0, 0.03, (len(patches), 1, 8, 8)).astype(np.float32)
            x[:, 0, 4] += middle
            for i, shown in enumerate(patches):
                strength = rng.uniform(0.4, 0.9)
                if 0 in shown:
                    x[i, 0, :3, :3] += strength
                if 1 in shown:
                    x[i, 0, 5:, 5:] += strength
            return x

        zeros = draw([()] * right, 0.6)
        ones = draw([(0, 1)] * right, 0.0)
        failing = draw([(p,) for p in self.patch], 0.1)
        y = np.repeat([0, 1, 0], [right, right, len(failing)])
        self.repair = Split(np.concatenate([zeros, ones, failing]), y, ids=1000 + np.arange(len(y)))
        self.train = Split(np.concatenate([zeros, ones]), y[: 2 * right])
        self.first_failure = 2 * right

    def task(self, **changes):
        fields = {
            "model": self.model,
            "repair": self.repair,
            "validation": self.repair,
            "train": self.train,
        }
        return Task(**fields | changes)


@pytest.fixture
def planted():
    return Planted
