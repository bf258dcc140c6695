from functools import cache

import numpy as np
import pytest
import torch
from modelfix_core import Split
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other


@cache
def _digits():
    """The 1,797 digits of scikit-learn, 8 x 8, as float images in a fixed random order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.images[order] / 16).astype(np.float32)[:, None]
    return Split(x, data.target[order].astype(np.int64))


def _model(layers, shape=(1, 8, 8), seed=0):
    from modelfix_core.torch import export

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(*(layer() for layer in layers))
    return export(net.eval(), shape)


@pytest.fixture
def digits():
    return _digits()


@pytest.fixture
def model_of():
    return _model


@pytest.fixture
def cnn():
    """A small untrained CNN with tanh: conv, dense, dense, dense."""
    return _model(
        [
            lambda: nn.Conv2d(1, 3, 3), nn.Tanh, nn.Flatten,
            lambda: nn.Linear(108, 12), nn.Tanh,
            lambda: nn.Linear(12, 9), nn.Tanh,
            lambda: nn.Linear(9, 10),
        ]
    )  # fmt: skip


@pytest.fixture
def mlp():
    return _model(
        [
            nn.Flatten, lambda: nn.Linear(64, 64), nn.ReLU, lambda: nn.Linear(64, 64), nn.ReLU,
            lambda: nn.Linear(64, 10),
        ]
    )  # fmt: skip
